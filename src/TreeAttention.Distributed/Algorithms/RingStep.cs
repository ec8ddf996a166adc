using System;

namespace TreeAttention.Distributed;

/// <summary>Ring attention: keys and values travel p-1 hops, and every rank attends to each shard as it comes by.</summary>
/// <remarks>
/// A hop is one message of exactly the elements of the shard that travels. With overlap the next shard travels while the
/// current one is attended to. Memory: the shard, two travelling buffers of the largest shard, two states.
/// A rank merges the shards in the order in which they come: ranks with replicated queries agree up to rounding.
/// </remarks>
internal sealed class RingStep : AttentionStep
{
    private const string Hop = "ring hop";

    private readonly bool _overlap;
    private readonly PartialAttention _state;
    private readonly PartialAttention _hopState;
    private readonly KeyValueShard[] _visitors; // [hops + 1]; the first is the own shard's place

    public RingStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount, bool overlap)
        : base(context, problem, shards, queryCount)
    {
        _overlap = overlap;
        _state = AllocateState(queryCount);
        _hopState = AllocateState(queryCount);
        int ranks = Transport.Size;
        var buffers = new Region[BufferCount(ranks)];
        for (int i = 0; i < buffers.Length; i++)
        {
            buffers[i] = Allocate(shards.LargestElements, shards.PlanOf(0).Type);
        }

        _visitors = new KeyValueShard[ranks];
        for (int hop = 0; hop < ranks; hop++)
        {
            int origin = (Transport.Rank - hop + ranks) % ranks;
            ShardPlan plan = shards.PlanOf(origin);
            Region contents = hop == 0 ? Region.Empty : buffers[(hop - 1) % 2].Slice(0, plan.Elements);
            _visitors[hop] = new KeyValueShard(plan, contents, shards.LimitsOf(origin));
        }
    }

    /// <summary>Travelling buffers of a rank.</summary>
    internal static int BufferCount(int ranks) => Math.Min(2, ranks - 1);

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
                Transport.StartExchange(current.Contents, next, _visitors[hop + 1].Contents, previous);
                EndCommunication();
            }

            AttendWhileTravelling(current, queries, first: hop == 0, underWay: travels && _overlap);
            if (travels)
            {
                BeginCommunication(Hop);
                Finish(current.Contents, next, _visitors[hop + 1].Contents, previous);
                EndCommunication();
                current = _visitors[hop + 1];
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

    private void Finish(Region outgoing, int next, Region incoming, int previous)
    {
        if (_overlap)
        {
            Transport.Complete();
        }
        else
        {
            Transport.Exchange(outgoing, next, incoming, previous);
        }
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
