using System;

namespace TreeAttention.Distributed;

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
            _visitors[hop] = _travelling.ShardIn(_rooms[hop % 2], OriginAfter(hop));
        }
    }

    // Messages of a growing cache have other lengths in every step.
    internal override bool IsCapturable => base.IsCapturable && (Transport.Size == 1 || !Shards.IsGrowing);

    /// <summary>Rooms of a rank: the own shard is packed into the one that takes the second visitor.</summary>
    internal static int RoomCount(int ranks, bool isPacked) => ranks == 1 ? 0 : isPacked ? 2 : Math.Min(2, ranks - 1);

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        int ranks = Transport.Size;
        int next = (Transport.Rank + 1) % ranks;
        int previous = (Transport.Rank + ranks - 1) % ranks;
        KeyValueShard current = shard;
        for (int hop = 0; hop < ranks; hop++)
        {
            bool travels = hop + 1 < ranks;
            if (travels && _overlap)
            {
                BeginCommunication(Hop);
                Prepare(hop, shard);
                Transport.StartExchange(_outgoing, next, _incoming, previous);
                EndCommunication();
            }

            AttendWhileTravelling(current, queries, first: hop == 0, underWay: travels && _overlap);
            if (travels)
            {
                BeginCommunication(Hop);
                Finish(hop, shard, next, previous);
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

    private void Finish(int hop, KeyValueShard own, int next, int previous)
    {
        if (_overlap)
        {
            Transport.Complete();
        }
        else
        {
            Prepare(hop, own);
            Transport.Exchange(_outgoing, next, _incoming, previous);
        }
    }

    // The own shard sets off; afterwards what came goes on.
    private void Prepare(int hop, KeyValueShard own)
    {
        _outgoing = hop == 0 ? _travelling.Pack(Device, own, _rooms[^1]) : _incoming;
        _incoming = _travelling.MessageIn(_rooms[hop % 2], OriginAfter(hop));
    }

    // Whose shard comes with a hop.
    private int OriginAfter(int hop) => (Transport.Rank - hop - 1 + Transport.Size) % Transport.Size;

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
