using System.Collections.Generic;
using System.Runtime.CompilerServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The pages of a shard in the lanes layout: which belong to which lane, and in which order the states of a node's pages fold.</summary>
internal sealed class LaneFold
{
    private readonly int[] _firstPage = new int[LaneTree.Lanes + 1];
    private readonly Dictionary<LaneNode, StateFold[]> _programs = [];
    private readonly int _pagesPerBatch;

    /// <summary>Indexes the pages of a plan.</summary>
    /// <exception cref="ShapeMismatchException">The plan's pages are not those of lanes.</exception>
    internal LaneFold(ShardPlan plan)
    {
        _pagesPerBatch = plan.PagesPerBatch;
        LaneTree.IndexPages(plan, _firstPage);
    }

    /// <summary>The folds are still those of the plan: which pages a rank has of a growing cache follows from their number.</summary>
    internal bool IsOf(ShardPlan plan) => plan.PagesPerBatch == _pagesPerBatch;

    /// <summary>First page of a node, and how many it has, in each batch row.</summary>
    internal (int First, int Count) PagesOf(LaneNode node) => (_firstPage[node.First], _firstPage[node.First + node.Size] - _firstPage[node.First]);

    /// <summary>The folds among the states of a node's pages, which count from its first page; state 0 becomes the node's.</summary>
    /// <returns>The same array each time.</returns>
    internal StateFold[] ProgramOf(LaneNode node)
    {
        if (!_programs.TryGetValue(node, out StateFold[]? program))
        {
            var folds = new List<StateFold>();
            Plan(_firstPage, node, _firstPage[node.First], folds);
            program = [.. folds];
            _programs.Add(node, program);
        }

        return program;
    }

    /// <summary>Adds the folds among the states of a node's pages. The state of a node is that of its first page; a node without pages changes nothing.</summary>
    /// <param name="firstPage">[lanes + 1] first page of each lane.</param>
    /// <param name="node">The node.</param>
    /// <param name="origin">The page that states count from.</param>
    /// <param name="folds">Gets the folds.</param>
    internal static void Plan(int[] firstPage, LaneNode node, int origin, List<StateFold> folds)
    {
        (int first, int end) = (firstPage[node.First], firstPage[node.First + node.Size]);
        if (node.Size == 1)
        {
            for (int page = first + 1; page < end; page++)
            {
                folds.Add(new StateFold { Into = first - origin, From = page - origin });
            }

            return;
        }

        var left = new LaneNode(node.First, node.Size / 2);
        var right = new LaneNode(node.First + left.Size, left.Size);
        Plan(firstPage, left, origin, folds);
        Plan(firstPage, right, origin, folds);
        int border = firstPage[right.First];
        if (first < border && border < end)
        {
            folds.Add(new StateFold { Into = first - origin, From = border - origin });
        }
    }
}

/// <summary>The lane folds of plans, each made once and kept as long as its plan has the same pages.</summary>
internal sealed class LaneFolds
{
    private readonly ConditionalWeakTable<ShardPlan, LaneFold> _folds = [];

    /// <summary>The folds of a plan.</summary>
    internal LaneFold Of(ShardPlan plan)
    {
        if (!_folds.TryGetValue(plan, out LaneFold? fold) || !fold.IsOf(plan))
        {
            fold = new LaneFold(plan);
            _folds.AddOrUpdate(plan, fold);
        }

        return fold;
    }
}
