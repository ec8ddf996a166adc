using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Steps;

/// <summary>Each rank attends to its own keys, a reduction folds the states. Memory: one state and the reduction's scratch.</summary>
internal sealed class TreeStep : AttentionStep
{
    private readonly PartialAttention _state;
    private readonly Reduction _reduction;

    public TreeStep(RankContext context, AttentionProblem problem, ShardMap shards, AttentionPlan plan, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _state = AllocateState(queryCount);
        _reduction = ReductionFactory.Create(
            plan.Reduction, context, _state.Rows, _state.ValueDim, NumeratorUnit.For(shards), plan.Nodes);
    }

    /// <inheritdoc/>
    public override ReductionKind Reduction => _reduction.Kind;

    internal override bool IsCapturable => _reduction.IsCapturable;

    /// <inheritdoc/>
    internal override long Constants => Shards.IsGrowing ? BitConverter.SingleToInt32Bits(NumeratorUnit.For(Shards)) : 0;

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _reduction.Dispose();
        }

        base.Dispose(disposing);
    }

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        BeginCompute();
        Device.Attend(Problem, queries, shard, _state);
        EndCompute();
        if (Shards.IsGrowing)
        {
            _reduction.Unit = NumeratorUnit.For(Shards);
        }

        Fold(_reduction, _state);
        return _state;
    }
}

/// <summary>The reproducible step: each rank folds its nodes of the lane tree, all ranks get all nodes and fold the rest of the tree.</summary>
/// <remarks>
/// One all-gather, of as many states from each rank as the rank with the most nodes has (one for p a power of two): the
/// unused ones travel unread. The tree is always the same, so the bits do not depend on the number of ranks.
/// Memory: n states to send and p·n gathered, with n = <see cref="StatesPerRank"/>; one state on one rank.
/// </remarks>
internal sealed class LanesStep : AttentionStep
{
    private readonly LaneNode[] _nodes;
    private readonly PartialAttention[] _mine;
    private readonly Region _sent;
    private readonly Region _gathered;
    private readonly List<(PartialAttention Into, PartialAttention From)> _folds = [];
    private readonly PartialAttention _whole;

    public LanesStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        int ranks = Transport.Size;
        int states = StatesPerRank(ranks);
        int rows = RowsFor(queryCount);
        long floats = PartialAttention.FloatsFor(rows, problem.Shape.ValueDim);
        _nodes = [.. LaneTree.NodesOf(Transport.Rank, ranks)];
        _sent = Allocate(states * floats, ElementType.Float32);
        _mine = [.. _nodes.Select((_, i) => new PartialAttention(_sent.Slice(i * floats, floats), rows, problem.Shape.ValueDim))];
        if (ranks == 1)
        {
            _whole = _mine[0];
            return;
        }

        _gathered = Allocate(ranks * states * floats, ElementType.Float32);
        var all = new Dictionary<LaneNode, PartialAttention>();
        for (int rank = 0; rank < ranks; rank++)
        {
            IReadOnlyList<LaneNode> nodes = LaneTree.NodesOf(rank, ranks);
            for (int i = 0; i < nodes.Count; i++)
            {
                Region slot = _gathered.Slice(((rank * states) + i) * floats, floats);
                all[nodes[i]] = new PartialAttention(slot, rows, problem.Shape.ValueDim);
            }
        }

        _whole = Plan(new LaneNode(0, LaneTree.Lanes), all);
    }

    /// <inheritdoc/>
    public override ReductionKind Reduction => ReductionKind.Lanes;

    /// <summary>States that each rank sends: the most nodes that any rank has.</summary>
    internal static int StatesPerRank(int ranks) => Enumerable.Range(0, ranks).Max(rank => LaneTree.NodesOf(rank, ranks).Count);

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        BeginCompute();
        Device.AttendLanes(Problem, queries, shard, _nodes, _mine);
        EndCompute();
        if (Transport.Size > 1)
        {
            BeginCommunication("all-gather");
            Transport.AllGather(_sent, _gathered);
            foreach ((PartialAttention into, PartialAttention from) in _folds)
            {
                Device.Merge(into, from);
            }

            EndCommunication();
        }

        return _whole;
    }

    private PartialAttention Plan(LaneNode node, Dictionary<LaneNode, PartialAttention> all)
    {
        if (all.TryGetValue(node, out PartialAttention? state))
        {
            return state;
        }

        int half = node.Size / 2;
        PartialAttention left = Plan(new LaneNode(node.First, half), all);
        PartialAttention right = Plan(new LaneNode(node.First + half, half), all);
        _folds.Add((left, right));
        return left;
    }
}

/// <summary>What a weight of 1 counts in a sum of numerators, so that the sum of all keys' values stays finite.</summary>
internal static class NumeratorUnit
{
    private const float Roomy = 1.7e38f; // half of the largest float: rounding may add, but not overflow

    /// <summary>1 where keys × the largest value is far below the largest float, else a power of two that makes it so.</summary>
    /// <remarks>Values whose limits are unknown or not finite may be as large as floats get.</remarks>
    public static float For(ShardMap shards)
    {
        float largest = 0;
        for (int rank = 0; rank < shards.Ranks; rank++)
        {
            foreach (PageLimits limits in shards.LimitsOf(rank))
            {
                largest = MathF.Max(largest, limits.LargestValue); // NaN stays NaN
            }
        }

        double bound = (float.IsFinite(largest) ? largest : float.MaxValue) * (double)Math.Max(1, shards.Shape.KeyLength);
        return bound <= Roomy ? 1f : (float)Math.ScaleB(1.0, -(int)Math.Ceiling(Math.Log2(bound / Roomy)));
    }
}
