namespace TreeAttention.Distributed;

/// <summary>Gathering: every rank gets the keys and values of all ranks, then attends with its own queries to all of them at once.</summary>
/// <remarks>
/// Equal shards travel in one all-gather; uneven ones as they are, in a broadcast for each rank that has keys. Pages are attended
/// to in the order of their positions, without states in between. Memory: all keys and values once more, and one state.
/// </remarks>
internal sealed class GatherStep : AttentionStep
{
    private readonly PartialAttention _state;
    private readonly KeyValueShard _whole;
    private readonly Region[] _parts; // [ranks] of the gathered contents

    public GatherStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _state = AllocateState(queryCount);
        _parts = new Region[shards.Ranks];
        (ShardPlan plan, PageLimits[] limits) = shards.Join();
        Region contents = shards.Ranks == 1 ? Region.Empty : Allocate(plan.Elements, plan.Type);
        _whole = new KeyValueShard(plan, contents, limits);
        long first = 0;
        for (int rank = 0; rank < shards.Ranks && shards.Ranks > 1; rank++)
        {
            _parts[rank] = contents.Slice(first, shards.PlanOf(rank).Elements);
            first += _parts[rank].Count;
        }
    }

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
        KeyValueShard whole = shard;
        if (Shards.Ranks > 1)
        {
            BeginCommunication("gather");
            GatherShards(shard.Contents);
            EndCommunication();
            whole = _whole;
        }

        BeginCompute();
        Device.Attend(Problem, queries, whole, _state);
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

    private void GatherShards(Region mine)
    {
        if (AreEqual(Shards))
        {
            Transport.AllGather(mine, _whole.Contents);
            return;
        }

        Device.Copy(mine, _parts[Transport.Rank]);
        for (int rank = 0; rank < _parts.Length; rank++)
        {
            if (_parts[rank].Count > 0)
            {
                Transport.Broadcast(_parts[rank], rank);
            }
        }
    }
}
