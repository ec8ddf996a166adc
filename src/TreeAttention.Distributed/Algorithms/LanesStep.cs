using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

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
