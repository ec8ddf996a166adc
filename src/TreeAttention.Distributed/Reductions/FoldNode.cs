using System;
using System.Linq;

namespace TreeAttention.Distributed;

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
