using System;
using System.Collections.Generic;
using System.Linq;
using System.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>One merge of the canonical fold: state <c>From</c> is folded into state <c>Into</c>.</summary>
internal readonly record struct FoldStep(int Into, int From);

/// <summary>The canonical order in which p states fold: the tree of the butterfly. Every reduction that folds follows it.</summary>
/// <remarks>
/// With p = 2^k + e the first e pairs of neighbours (0,1), (2,3), … fold first; the 2^k states that are left fold with
/// their neighbours at distance 1, 2, 4, …. The merge is commutative to the bit, so both partners of an exchange, and
/// whoever folds a copy of all states, get the same bits; so do two sibling ranks that exchange their shards.
/// </remarks>
internal static class FoldTree
{
    /// <summary>The merges in order; afterwards state 0 is the whole. None for one state.</summary>
    public static FoldStep[] StepsFor(int states)
    {
        var steps = new List<FoldStep>();
        int[] survivors = SurvivorsOf(states);
        for (int pair = 0; pair < states - survivors.Length; pair++)
        {
            steps.Add(new FoldStep(2 * pair, (2 * pair) + 1));
        }

        for (int distance = 1; distance < survivors.Length; distance *= 2)
        {
            for (int i = 0; i < survivors.Length; i += 2 * distance)
            {
                steps.Add(new FoldStep(survivors[i], survivors[i + distance]));
            }
        }

        return [.. steps];
    }

    /// <summary>The states that are left after the first pairs folded: a power of two of them, ascending.</summary>
    public static int[] SurvivorsOf(int states)
    {
        int power = (int)BitOperations.RoundUpToPowerOf2((uint)states + 1) / 2;
        int extra = states - power;
        int[] survivors = new int[power];
        for (int i = 0; i < power; i++)
        {
            survivors[i] = i < extra ? 2 * i : i + extra;
        }

        return survivors;
    }

    /// <summary>Folds the states in place; <c>states[0]</c> becomes the whole, the others are used up.</summary>
    /// <param name="device">Where the states lie.</param>
    /// <param name="states">One state for each rank, in rank order.</param>
    /// <param name="steps">What <see cref="StepsFor"/> gave for as many states.</param>
    public static void Fold(IDevice device, ReadOnlySpan<PartialAttention> states, ReadOnlySpan<FoldStep> steps)
    {
        foreach (FoldStep step in steps)
        {
            device.Merge(states[step.Into], states[step.From]);
        }
    }
}

/// <summary>The canonical fold as a tree: a rank, or the merge of two subtrees.</summary>
internal sealed class FoldNode
{
    private readonly FoldNode? _left;
    private readonly FoldNode? _right;
    private readonly int[] _ranks;

    /// <summary>The tree of <see cref="FoldTree.StepsFor"/>.</summary>
    public FoldNode(int ranks)
    {
        FoldNode[] nodes = [.. Enumerable.Range(0, ranks).Select(rank => new FoldNode([rank], null, null))];
        foreach (FoldStep step in FoldTree.StepsFor(ranks))
        {
            FoldNode left = nodes[step.Into];
            FoldNode right = nodes[step.From];
            nodes[step.Into] = new FoldNode([.. left._ranks, .. right._ranks], left, right);
        }

        (_left, _right, _ranks) = (nodes[0]._left, nodes[0]._right, nodes[0]._ranks);
    }

    private FoldNode(int[] ranks, FoldNode? left, FoldNode? right) => (_ranks, _left, _right) = (ranks, left, right);

    /// <summary>One rank's state, nothing to merge.</summary>
    public bool IsLeaf => _left is null;

    /// <summary>The rank of a leaf.</summary>
    public int Rank => _ranks[0];

    /// <summary>The first subtree of a merge.</summary>
    public FoldNode Left => _left!;

    /// <summary>The second subtree of a merge.</summary>
    public FoldNode Right => _right!;

    /// <summary>States that must be held at once to evaluate the subtree from copies of its leaves; 0 for a leaf, which is read where it lies.</summary>
    public int Depth
    {
        get
        {
            if (IsLeaf)
            {
                return 0;
            }

            int deep = Math.Max(Left.Depth, Right.Depth);
            int shallow = Math.Min(Left.Depth, Right.Depth);
            return Math.Max(Math.Max(1, deep), shallow == 0 ? 0 : shallow + 1);
        }
    }

    /// <summary>The subtree that holds the rank.</summary>
    public FoldNode ChildWith(int rank) => Left._ranks.Contains(rank) ? Left : Right;

    /// <summary>The other subtree.</summary>
    public FoldNode SiblingOf(int rank) => Left._ranks.Contains(rank) ? Right : Left;
}
