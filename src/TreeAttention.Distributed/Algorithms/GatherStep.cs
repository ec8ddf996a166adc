namespace TreeAttention.Distributed;

/// <summary>Gathering: every rank gets the keys and values of all ranks, then attends with its own queries to all of them at once.</summary>
/// <remarks>
/// Equal shards travel in one all-gather; uneven ones as they are, in a broadcast for each rank that has keys. Pages are attended
/// to in the order of their positions, without states in between. What a growing cache has is packed, and broadcast. Memory: all
/// keys and values once more, of a growing cache as many as there may be, and one state.
/// </remarks>
internal sealed class GatherStep : AttentionStep
{
    private readonly PartialAttention _state;
    private readonly TravellingShards _travelling;
    private readonly Region _rooms;
    private readonly KeyValueShard? _whole; // null on one rank

    public GatherStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _travelling = shards.Travel();
        if (shards.Ranks > 1)
        {
            _travelling.RequireMemory(context, _travelling.RoomsBytes);
            _rooms = Allocate(_travelling.RoomsBytes, ElementType.Byte);
            _whole = _travelling.JoinedIn(_rooms);
        }

        _state = AllocateState(queryCount);
    }

    // Messages of a growing cache have other lengths in every step.
    internal override bool IsCapturable => base.IsCapturable && (_whole is null || !Shards.IsGrowing);

    /// <summary>Collectives of a step: one all-gather of equal shards, or a broadcast of each that is not empty.</summary>
    internal static int CollectivesOf(ShardMap shards)
    {
        int holders = 0;
        for (int rank = 0; rank < shards.Ranks; rank++)
        {
            holders += shards.PlanOf(rank).Elements > 0 ? 1 : 0;
        }

        return AreEqual(shards) ? 1 : holders;
    }

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        if (_whole is not null)
        {
            BeginCommunication("gather");
            GatherShards(shard);
            EndCommunication();
        }

        BeginCompute();
        Device.Attend(Problem, queries, _whole ?? shard, _state);
        EndCompute();
        return _state;
    }

    private static bool AreEqual(ShardMap shards)
    {
        for (int rank = 1; rank < shards.Ranks; rank++)
        {
            if (shards.PlanOf(rank).Elements != shards.PlanOf(0).Elements)
            {
                return false;
            }
        }

        return true;
    }

    private void GatherShards(KeyValueShard own)
    {
        Region room = _travelling.RoomIn(_rooms, Transport.Rank);
        Region mine = _travelling.Pack(Device, own, room);
        if (!Shards.IsGrowing && AreEqual(Shards))
        {
            Transport.AllGather(mine, _rooms);
            return;
        }

        Region place = _travelling.MessageIn(room, Transport.Rank);
        if (place.Address != mine.Address)
        {
            Device.Copy(mine, place);
        }

        for (int rank = 0; rank < Shards.Ranks; rank++)
        {
            Region message = _travelling.MessageIn(_travelling.RoomIn(_rooms, rank), rank);
            if (message.Bytes > 0)
            {
                Transport.Broadcast(message, rank);
            }
        }

        _travelling.Join(Device, _rooms);
    }
}
