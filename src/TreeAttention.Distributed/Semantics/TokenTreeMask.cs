using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Semantics;

/// <summary>The options that make the queries of a call the nodes of token trees: a mask and biases over their own keys, and their depths.</summary>
/// <remarks>The keys of the nodes are the last keys of their batch row, in the order of the nodes; all keys before them are context.</remarks>
internal static class TokenTreeMask
{
    /// <summary>The options with the trees added.</summary>
    /// <param name="options">Whatever else holds: causal, window, chunks and ALiBi count by depth. Tails of their own are refused.</param>
    /// <param name="batch">Batch rows.</param>
    /// <param name="queryLength">Queries of the longest row.</param>
    /// <param name="trees">One tree for all batch rows, or one for each. A row's tree has as many nodes as the row has queries.</param>
    /// <exception cref="ShapeMismatchException">A tree does not have a node for each query, or the options have tails or depths already.</exception>
    public static AttentionOptions Apply(AttentionOptions options, int batch, int queryLength, IReadOnlyList<TokenTree> trees)
    {
        if (AttentionOption.HasMisplaced(options, OptionUses.Trees))
        {
            throw new ShapeMismatchException(
                $"A token tree is a mask over the last keys: leave {Setting.TailMask}, {Setting.TailBias}, {Setting.DfsStart} and {Setting.DfsEnd} out.");
        }

        if (trees.Count != 1 && trees.Count != batch)
        {
            throw new ShapeMismatchException($"There are {trees.Count} token trees for {batch} batch rows: one for each, or one for all.");
        }

        bool[] mask = new bool[batch * queryLength * queryLength];
        float[]? bias = null;
        int[] depths = new int[batch * queryLength];
        for (int row = 0; row < batch; row++)
        {
            TokenTree tree = trees[trees.Count == 1 ? 0 : row];
            int queries = options.QueryLengths?[row] ?? queryLength;
            if (tree.Count != queries)
            {
                throw new ShapeMismatchException($"The tree of batch row {row} has {tree.Count} nodes, but the row has {queries} queries: one for each node.");
            }

            tree.Depths.CopyTo(depths.AsSpan(row * queryLength));
            FillMask(tree, mask.AsSpan(row * queryLength * queryLength), queryLength);
            if (tree.Bias is not null)
            {
                bias ??= new float[mask.Length];
                FillBias(tree, bias.AsSpan(row * queryLength * queryLength), queryLength);
            }
        }

        return options with
        {
            TailMask = mask,
            TailMaskLength = queryLength,
            TailBias = bias,
            TailBiasLength = queryLength,
            QueryDepths = depths,
        };
    }

    /// <summary>The options with trees that are told by their parents.</summary>
    /// <param name="options">As for <see cref="Apply"/>.</param>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="parents">[query_len] for all batch rows, or [batch, query_len]; of a row with fewer queries those after its last count for nothing.</param>
    /// <exception cref="FaultException">The parents make no tree; which row.</exception>
    internal static AttentionOptions ApplyParents(AttentionOptions options, AttentionShape shape, int[] parents)
    {
        int most = shape.QueryLength;
        int rows = Math.Max(1, parents.Length / Math.Max(1, most));
        TokenTree[] trees = [.. Enumerable.Range(0, shape.Batch).Select(row => TreeOf(
            row, parents.AsSpan(row % rows * most, Math.Clamp(options.QueryLengths?[row] ?? most, 0, most))))];
        return Apply(options, shape.Batch, most, trees);
    }

    private static TokenTree TreeOf(int row, ReadOnlySpan<int> parents)
    {
        try
        {
            return TokenTree.FromParents(parents);
        }
        catch (FaultException fault)
        {
            throw new FaultException(fault.Code, $"{Setting.TreeParents} of batch row {row}: {fault.Message}", fault);
        }
    }

    // The last columns are the nodes; columns before them are context keys of a row with fewer nodes than the mask is wide.
    private static void FillMask(TokenTree tree, Span<bool> mask, int width)
    {
        int before = width - tree.Count;
        bool[] nodes = tree.ToMask();
        for (int node = 0; node < tree.Count; node++)
        {
            Span<bool> row = mask.Slice(node * width, width);
            row[..before].Fill(true);
            nodes.AsSpan(node * tree.Count, tree.Count).CopyTo(row[before..]);
        }
    }

    private static void FillBias(TokenTree tree, Span<float> bias, int width)
    {
        for (int node = 0; node < tree.Count; node++)
        {
            for (int seen = node; seen >= 0; seen = tree.Parents[seen])
            {
                bias[(node * width) + width - tree.Count + seen] = tree.Bias![(node * tree.Count) + seen];
            }
        }
    }
}
