using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;

namespace TreeAttention.Distributed.Steps;

/// <summary>The formulas of bytes, messages, collectives and memory; what is counted is held against them.</summary>
/// <remarks>An empty region is no message: a shard without keys does not travel.</remarks>
internal static class ExpectedTraffic
{
    /// <summary>One step of a plan.</summary>
    /// <param name="plan">The plan; its reduction is the one actually used, not <see cref="ReductionKind.Auto"/>.</param>
    /// <param name="shards">The shards of all ranks.</param>
    /// <param name="nodes">The node of each rank (<see cref="ITransport.Nodes"/>).</param>
    public static TrafficForecast Of(AttentionPlan plan, ShardMap shards, IReadOnlyList<int> nodes)
    {
        AttentionShape shape = shards.Shape;
        long state = StateBytes(shape, shape.QueryLength);
        if (shards.Ranks == 1 && (plan.Algorithm != AttentionAlgorithm.Tree || plan.Reduction == ReductionKind.Lanes))
        {
            return default;
        }

        return plan.Algorithm switch
        {
            AttentionAlgorithm.Single => default,
            AttentionAlgorithm.Tree => OfReduction(
                plan.Reduction, checked(shape.Batch * shape.QueryHeads * shape.QueryLength), shape.ValueDim, plan.Nodes ?? nodes),
            AttentionAlgorithm.RingQuery when plan.Placement == QueryPlacement.Replicated => OfHops(shards.Ranks, _ => state, _ => 0),
            AttentionAlgorithm.RingQuery => OfHops(
                shards.Ranks, origin => QueryBlockBytes(shards, origin), origin => StateBytes(shape, QueriesOf(shards, origin))),
            AttentionAlgorithm.Gather => new(shards.PlanOf(0).Type.BytesFor(shards.LargestElements), 0, GatherStep.CollectivesOf(shards)),
            _ => OfHops(shards.Ranks, origin => shards.PlanOf(origin).Bytes, _ => 0),
        };
    }

    /// <summary>One fold of the states of all ranks.</summary>
    /// <param name="kind">Any reduction but <see cref="ReductionKind.Auto"/>.</param>
    /// <param name="rows">Rows of a state.</param>
    /// <param name="valueDim">Elements of an output row.</param>
    /// <param name="nodes">The node of each rank.</param>
    public static TrafficForecast OfReduction(ReductionKind kind, int rows, int valueDim, IReadOnlyList<int> nodes)
    {
        int ranks = nodes.Count;
        long state = PartialAttention.FloatsFor(rows, valueDim) * sizeof(float);
        return kind switch
        {
            ReductionKind.ThreeAllReduce => new(state, 0, 3),
            ReductionKind.TwoAllReduce => new(state, 0, 2),
            ReductionKind.Fused or ReductionKind.AllGather => new(state, 0, 1),
            ReductionKind.OneShot => new(state, 0, 0),
            ReductionKind.Lanes => new(LanesStep.StatesPerRank(ranks) * state, 0, 1),
            ReductionKind.AllToAll => new(AllToAllBytes(rows, valueDim, ranks), 0, 2),
            ReductionKind.Butterfly => OfStates(ButterflyMessages(ranks), state),
            ReductionKind.TwoLevel => OfStates(TwoLevelMessages(nodes), state),
            _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "Which reduction it becomes is decided at run time."),
        };
    }

    /// <summary>Most messages of a rank in a butterfly: log2 of the largest power of two, and one more where a neighbour gets the result back.</summary>
    public static int ButterflyMessages(int ranks)
    {
        int power = FoldTree.SurvivorsOf(ranks).Length;
        return int.Log2(power) + (ranks > power ? 1 : 0);
    }

    /// <summary>Bytes that a step allocates: states, scratch, travelling buffers.</summary>
    /// <param name="plan">The plan; its reduction is the one actually used.</param>
    /// <param name="shards">The shards of all ranks.</param>
    public static long StepBytes(AttentionPlan plan, ShardMap shards)
    {
        AttentionShape shape = shards.Shape;
        int ranks = shards.Ranks;
        bool sharded = plan.Placement == QueryPlacement.Sharded;
        int queries = sharded ? Enumerable.Range(0, ranks).Max(rank => QueriesOf(shards, rank)) : shape.QueryLength;
        int rows = checked(shape.Batch * shape.QueryHeads * queries);
        long state = StateBytes(shape, queries);
        if (plan.Reduction == ReductionKind.Lanes)
        {
            return PeakScratchBytes(ReductionKind.Lanes, rows, shape.ValueDim, ranks);
        }

        return plan.Algorithm switch
        {
            AttentionAlgorithm.Single => state,
            AttentionAlgorithm.Tree => state + PeakScratchBytes(plan.Reduction, rows, shape.ValueDim, ranks),
            AttentionAlgorithm.RingQuery when sharded => state + (2 * RingQueryStep.BlockFloats(shape, rows) * sizeof(float)),
            AttentionAlgorithm.RingQuery => ranks * state,
            AttentionAlgorithm.Gather => state + (ranks == 1 ? 0 : Enumerable.Range(0, ranks).Sum(rank => shards.PlanOf(rank).Bytes)),
            _ => (2 * state) + (RingStep.RoomCount(ranks, isPacked: false) * shards.PlanOf(0).Type.BytesFor(shards.LargestElements)),
        };
    }

    /// <summary>Bytes of scratch of a reduction, beside the state that it folds; slots of peer memory are the transport's and not counted.</summary>
    /// <param name="kind">Any reduction but <see cref="ReductionKind.Auto"/>.</param>
    /// <param name="rows">Rows of a state.</param>
    /// <param name="valueDim">Elements of an output row.</param>
    /// <param name="ranks">Number of ranks.</param>
    public static long PeakScratchBytes(ReductionKind kind, int rows, int valueDim, int ranks)
    {
        long state = PartialAttention.FloatsFor(rows, valueDim) * sizeof(float);
        long share = PartialAttention.FloatsFor(AllToAllReduction.LargestShare(rows, ranks), valueDim) * sizeof(float);
        int laneStates = LanesStep.StatesPerRank(ranks);
        return kind switch
        {
            ReductionKind.ThreeAllReduce or ReductionKind.TwoAllReduce => state,
            ReductionKind.Fused => 0,
            ReductionKind.AllGather => ranks * state,
            ReductionKind.Butterfly or ReductionKind.TwoLevel => ranks > 1 ? state : 0,
            ReductionKind.AllToAll => ((2 * ranks) + 1) * share,
            ReductionKind.OneShot => Enumerable.Range(0, ranks).Max(rank => OneShotReduction.ScratchStates(rank, ranks)) * state,
            ReductionKind.Lanes => ranks > 1 ? (ranks + 1) * laneStates * state : state,
            _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "Which reduction it becomes is decided at run time."),
        };
    }

    /// <summary>The paper's ring volume (arXiv 2408.04093, section 5.3): 2·b·t·d·p elements.</summary>
    /// <param name="batch">b</param>
    /// <param name="tokensPerRank">t</param>
    /// <param name="hiddenSize">d: KV heads × head dimension.</param>
    /// <param name="ranks">p</param>
    public static double PaperRingElements(int batch, double tokensPerRank, int hiddenSize, int ranks) =>
        2.0 * batch * tokensPerRank * hiddenSize * ranks;

    /// <summary>The paper's tree volume: 2·(p-1)/p·(b·d + 2·b·n_h) elements.</summary>
    /// <param name="batch">b</param>
    /// <param name="hiddenSize">d: query heads × value dimension.</param>
    /// <param name="heads">n_h: query heads.</param>
    /// <param name="ranks">p</param>
    public static double PaperTreeElements(int batch, int hiddenSize, int heads, int ranks) =>
        2.0 * (ranks - 1) / ranks * (((double)batch * hiddenSize) + (2.0 * batch * heads));

    private static int QueriesOf(ShardMap shards, int rank) =>
        QueryLayout.IndicesOf(QueryPlacement.Sharded, shards.Layout, shards.Shape, rank, shards.Ranks).Length;

    private static long StateBytes(AttentionShape shape, int queries) =>
        PartialAttention.FloatsFor(checked(shape.Batch * shape.QueryHeads * queries), shape.ValueDim) * sizeof(float);

    private static long QueryBlockBytes(ShardMap shards, int rank) => sizeof(float)
        * RingQueryStep.BlockFloats(shards.Shape, checked(shards.Shape.Batch * shards.Shape.QueryHeads * QueriesOf(shards, rank)));

    // Rank r sends what belongs to ranks r, r-1, …: p-1 hops, and one more to bring what is left of the last one home.
    private static TrafficForecast OfHops(int ranks, Func<int, long> hopBytes, Func<int, long> homeBytes)
    {
        long bytes = 0;
        long messages = 0;
        for (int rank = 0; rank < ranks; rank++)
        {
            long[] sent = [.. Enumerable.Range(0, ranks - 1).Select(hop => hopBytes(new Ring(rank, ranks).Behind(hop))), homeBytes(new Ring(rank, ranks).Next)];
            bytes = Math.Max(bytes, sent.Sum());
            messages = Math.Max(messages, sent.Count(length => length > 0));
        }

        return new TrafficForecast(bytes, messages, 0);
    }

    private static TrafficForecast OfStates(int messages, long stateBytes) =>
        stateBytes == 0 ? default : new TrafficForecast(messages * stateBytes, messages, 0);

    private static int TwoLevelMessages(IReadOnlyList<int> nodes)
    {
        int most = 0;
        int leaders = nodes.Distinct().Count();
        foreach (IGrouping<int, int> node in nodes.GroupBy(node => node))
        {
            // A member sends its state up once and the result down to each rank it merged; leaders send to leaders.
            FoldStep[] steps = FoldTree.StepsFor(node.Count());
            most = Math.Max(most, Enumerable.Range(0, node.Count()).Max(place =>
                steps.Count(step => step.Into == place) + (place == 0 ? ButterflyMessages(leaders) : 1)));
        }

        return most;
    }

    private static long AllToAllBytes(int rows, int valueDim, int ranks)
    {
        long gathered = PartialAttention.FloatsFor(AllToAllReduction.LargestShare(rows, ranks), valueDim);
        int smallest = Enumerable.Range(0, ranks).Min(rank =>
            AllToAllReduction.FirstRow(rows, rank + 1, ranks) - AllToAllReduction.FirstRow(rows, rank, ranks));
        return (PartialAttention.FloatsFor(rows - smallest, valueDim) + gathered) * sizeof(float);
    }
}

/// <summary>What the busiest rank hands to its transport in one step.</summary>
/// <param name="Bytes">Payload bytes: the most of any rank.</param>
/// <param name="Messages">Point-to-point messages: the most of any rank.</param>
/// <param name="Collectives">Collectives that every rank takes part in.</param>
internal readonly record struct TrafficForecast(long Bytes, long Messages, long Collectives);
