using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Steps;

/// <summary>Ring attention: keys and values travel p-1 hops, and every rank attends to each shard as it comes by.</summary>
/// <remarks>
/// A hop is one message of exactly the elements of the shard that travels; what a growing cache has is packed first, once a step.
/// With overlap the next shard travels while the current one is attended to. Memory: two rooms for the largest shard, two states.
/// A rank merges the shards in the order in which they come: ranks with replicated queries agree up to rounding.
/// </remarks>
internal sealed class RingStep : AttentionStep
{
    private const string Hop = "ring hop";

    private readonly bool _overlap;
    private readonly PartialAttention _state;
    private readonly PartialAttention _hopState;
    private readonly TravellingShards _travelling;
    private readonly Region[] _rooms;
    private readonly KeyValueShard[] _visitors; // [hops] in the order in which they come
    private Region _outgoing;
    private Region _incoming;

    public RingStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount, bool overlap)
        : base(context, problem, shards, queryCount)
    {
        _overlap = overlap;
        int ranks = Transport.Size;
        _travelling = shards.Travel();
        _rooms = new Region[RoomCount(ranks, shards.IsGrowing)];
        _travelling.RequireMemory(context, _rooms.Length * _travelling.RoomBytes);
        _state = AllocateState(queryCount);
        _hopState = AllocateState(queryCount);
        for (int i = 0; i < _rooms.Length; i++)
        {
            _rooms[i] = Allocate(_travelling.RoomBytes, ElementType.Byte);
        }

        _visitors = new KeyValueShard[ranks - 1];
        for (int hop = 0; hop < _visitors.Length; hop++)
        {
            _visitors[hop] = _travelling.ShardIn(_rooms[hop % 2], Ring.Behind(hop + 1));
        }
    }

    // Messages of a growing cache have other lengths in every step.
    internal override bool IsCapturable => base.IsCapturable && (Transport.Size == 1 || !Shards.IsGrowing);

    /// <summary>Rooms of a rank: the own shard is packed into the one that takes the second visitor.</summary>
    internal static int RoomCount(int ranks, bool isPacked) => ranks == 1 ? 0 : isPacked ? 2 : Math.Min(2, ranks - 1);

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        KeyValueShard current = shard;
        for (int hop = 0; hop < ranks; hop++)
        {
            bool travels = hop + 1 < ranks;
            if (travels && _overlap)
            {
                BeginCommunication(Hop);
                Prepare(hop, shard);
                Transport.StartExchange(_outgoing, Ring.Next, _incoming, Ring.Previous);
                EndCommunication();
            }

            AttendWhileTravelling(current, queries, first: hop == 0, underWay: travels && _overlap);
            if (travels)
            {
                BeginCommunication(Hop);
                Finish(hop, shard);
                EndCommunication();
                current = _visitors[hop];
            }
        }

        return _state;
    }

    // Whoever catches the fault frees the buffers, so nothing may travel in them any more.
    private void AttendWhileTravelling(KeyValueShard shard, QueryBlock queries, bool first, bool underWay)
    {
        try
        {
            AttendTo(shard, queries, first);
        }
        catch when (underWay)
        {
            CompleteIfPossible();
            throw;
        }
    }

    private void CompleteIfPossible()
    {
        try
        {
            Transport.Complete();
        }
        catch (FaultException)
        {
            // The neighbours are lost as well; the fault that comes first is the one to tell.
        }
    }

    private void Finish(int hop, KeyValueShard own)
    {
        if (_overlap)
        {
            Transport.Complete();
        }
        else
        {
            Prepare(hop, own);
            Transport.Exchange(_outgoing, Ring.Next, _incoming, Ring.Previous);
        }
    }

    // The own shard sets off; afterwards what came goes on.
    private void Prepare(int hop, KeyValueShard own)
    {
        _outgoing = hop == 0 ? _travelling.Pack(Device, own, _rooms[^1]) : _incoming;
        _incoming = _travelling.MessageIn(_rooms[hop % 2], Ring.Behind(hop + 1));
    }

    private void AttendTo(KeyValueShard shard, QueryBlock queries, bool first)
    {
        BeginCompute();
        Device.Attend(Problem, queries, shard, first ? _state : _hopState);
        if (!first)
        {
            Device.Merge(_state, _hopState);
        }

        EndCompute();
    }
}

/// <summary>ring-query with replicated queries: the keys stay, the ranks' partials travel p-1 hops to every rank.</summary>
/// <remarks>
/// All partials are kept and folded in the canonical order, so every rank gets the same bits as by an all-gather.
/// Memory: p states.
/// </remarks>
internal sealed class RingPartialStep : AttentionStep
{
    private readonly PartialAttention[] _states; // [rank] whose partial it is
    private readonly FoldStep[] _steps;

    public RingPartialStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _states = new PartialAttention[Transport.Size];
        for (int rank = 0; rank < _states.Length; rank++)
        {
            _states[rank] = AllocateState(queryCount);
        }

        _steps = FoldTree.StepsFor(_states.Length);
    }

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        int rank = Transport.Rank;
        BeginCompute();
        Device.Attend(Problem, queries, shard, _states[rank]);
        EndCompute();
        BeginCommunication("ring hop");
        for (int hop = 0; hop + 1 < ranks; hop++)
        {
            Region outgoing = _states[Ring.Behind(hop)].Region;
            Region incoming = _states[Ring.Behind(hop + 1)].Region;
            Transport.Exchange(outgoing, Ring.Next, incoming, Ring.Previous);
        }

        EndCommunication();
        BeginCompute();
        FoldTree.Fold(Device, _states, _steps);
        EndCompute();
        return _states[0];
    }
}

/// <summary>ring-query with sharded queries: the keys stay, each rank's queries travel with their running partial and come home.</summary>
/// <remarks>
/// A message is the partial followed by its queries, p-1 hops long; on the last hop, home, the queries are left away. A rank's
/// result is folded in the order of the ranks that its queries visit. Memory: two travelling blocks and one state, each of
/// the rank with the most queries.
/// </remarks>
internal sealed class RingQueryStep : AttentionStep
{
    private readonly Visitor[] _visitors; // [hops + 1]: the own block, the others as they come, the own block again

    public RingQueryStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        AttentionShape shape = problem.Shape;
        int ranks = Transport.Size;
        int[][] indices = [.. Enumerable.Range(0, ranks)
            .Select(rank => QueryLayout.IndicesOf(QueryPlacement.Sharded, shards.Layout, shape, rank, ranks))];
        int largest = indices.Max(block => block.Length);
        Region[] buffers = [.. Enumerable.Range(0, 2).Select(_ => Allocate(BlockFloats(shape, RowsFor(largest)), ElementType.Float32))];
        Region scratch = AllocateState(largest).Region;
        _visitors = new Visitor[ranks + 1];
        for (int hop = 0; hop <= ranks; hop++)
        {
            int[] block = indices[(Transport.Rank - hop + ranks) % ranks];
            int rows = RowsFor(block.Length);
            long stateFloats = PartialAttention.FloatsFor(rows, shape.ValueDim);
            Region buffer = buffers[hop % 2];
            _visitors[hop] = new Visitor(
                buffer.Slice(0, hop == ranks ? stateFloats : BlockFloats(shape, rows)),
                new PartialAttention(buffer.Slice(0, stateFloats), rows, shape.ValueDim),
                new QueryBlock(buffer.Slice(stateFloats, (long)rows * shape.HeadDim), block),
                new PartialAttention(scratch.Slice(0, stateFloats), rows, shape.ValueDim));
        }
    }

    /// <summary>Floats of a travelling block: a state and its queries.</summary>
    internal static long BlockFloats(AttentionShape shape, int rows) =>
        PartialAttention.FloatsFor(rows, shape.ValueDim) + ((long)rows * shape.HeadDim);

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        Device.Copy(queries.Values, _visitors[0].Queries.Values);
        for (int hop = 0; hop < ranks; hop++)
        {
            Visitor visitor = _visitors[hop];
            BeginCompute();
            Device.Attend(Problem, visitor.Queries, shard, hop == 0 ? visitor.State : visitor.Here);
            if (hop > 0)
            {
                Device.Merge(visitor.State, visitor.Here);
            }

            EndCompute();
            if (ranks > 1)
            {
                BeginCommunication("ring hop");
                Region outgoing = hop + 1 == ranks ? visitor.State.Region : visitor.Message;
                Transport.Exchange(outgoing, Ring.Next, _visitors[hop + 1].Message, Ring.Previous);
                EndCommunication();
            }
        }

        return _visitors[ranks > 1 ? ranks : 0].State;
    }

    // Message: what arrives; State, Queries: its parts; Here: its partial over this rank's keys.
    private sealed record Visitor(Region Message, PartialAttention State, QueryBlock Queries, PartialAttention Here);
}

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
