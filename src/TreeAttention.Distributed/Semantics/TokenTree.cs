using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention;

/// <summary>Guesses at the next tokens, verified together: each node continues its parent, and sees the context, its ancestors and itself.</summary>
/// <remarks>
/// Node 0 is a root, a token that others continue; there may be several roots, each continuing the context. A parent comes before its
/// children. A node stands as many positions behind the roots as it is deep, whatever its place among the nodes: siblings stand at the same
/// position.
/// </remarks>
public sealed class TokenTree
{
    private readonly int[] _parents;
    private readonly int[] _depths;

    private TokenTree(int[] parents, float[]? bias)
    {
        _parents = parents;
        _depths = new int[parents.Length];
        for (int node = 1; node < parents.Length; node++)
        {
            _depths[node] = parents[node] < 0 ? 0 : _depths[parents[node]] + 1;
        }

        Bias = bias;
    }

    /// <summary>Nodes.</summary>
    public int Count => _parents.Length;

    /// <summary>[nodes] the parent of each node; -1 for a root.</summary>
    public ReadOnlySpan<int> Parents => _parents;

    /// <summary>[nodes] how many steps each node is from its root.</summary>
    public ReadOnlySpan<int> Depths => _depths;

    /// <summary>[nodes, nodes] what an additive encoding adds to the scores of the nodes that a node sees; null when nothing.</summary>
    public float[]? Bias { get; }

    /// <summary>A tree from the parent of each node; -1 for a root, as node 0 is.</summary>
    /// <exception cref="FaultException">No such tree (65): a cycle, a child before its parent, a parent that is no node.</exception>
    public static TokenTree FromParents(ReadOnlySpan<int> parents)
    {
        for (int node = 0; node < parents.Length; node++)
        {
            int parent = parents[node];
            if (parent < -1 || parent >= parents.Length)
            {
                throw Bad($"node {node} has parent {parent}, but nodes are 0 to {parents.Length - 1}, and -1 is the parent of a root");
            }

            if (node == 0 && parent != -1)
            {
                throw Bad($"node 0 has parent {parent}, but node 0 is a root, with parent -1");
            }

            if (parent >= node)
            {
                throw Bad(IsInCycle(parents, node)
                    ? $"node {node} is its own ancestor"
                    : $"node {node} comes before its parent {parent}. Order the nodes so that parents come first");
            }
        }

        return new TokenTree([.. parents], null);
    }

    /// <summary>A tree from paths of child numbers, as Medusa and EAGLE publish theirs: the root, then one node for each path, shorter paths first.</summary>
    /// <param name="paths">The path of each node but the root: [0, 2] is the third child of the first child of the root.</param>
    /// <exception cref="FaultException">A path goes through a node that no path names, or is named twice (65).</exception>
    public static TokenTree FromPaths(IEnumerable<IReadOnlyList<int>> paths)
    {
        int[][] sorted = [.. paths.Select(path => path.ToArray()).OrderBy(path => path.Length).ThenBy(path => path, Comparer<int[]>.Create(Compare))];
        var nodes = new Dictionary<string, int>(StringComparer.Ordinal) { [""] = 0 };
        int[] parents = new int[sorted.Length + 1];
        parents[0] = -1;
        for (int i = 0; i < sorted.Length; i++)
        {
            string name = string.Join(',', sorted[i]);
            if (!nodes.TryGetValue(string.Join(',', sorted[i].SkipLast(1)), out parents[i + 1]) || !nodes.TryAdd(name, i + 1))
            {
                throw Bad(nodes.ContainsKey(name) ? $"path [{name}] is named twice" : $"path [{name}] continues a path that is not named");
            }
        }

        return new TokenTree(parents, null);
    }

    /// <summary>A tree from what each node sees of the others.</summary>
    /// <param name="mask">[nodes, nodes] row-major: true where the row's node sees the column's.</param>
    /// <exception cref="FaultException">Some node does not see exactly itself, its parent and what that sees (65).</exception>
    public static TokenTree FromMask(ReadOnlySpan<bool> mask) => FromMask(mask, null);

    /// <summary>A tree from what is added to scores: -∞ where a node does not see another, any number where it does.</summary>
    /// <param name="bias">[nodes, nodes] row-major. Numbers other than 0 stay biases of the tree.</param>
    /// <exception cref="FaultException">As <see cref="FromMask(ReadOnlySpan{bool})"/>, or an element is NaN or +∞ (65).</exception>
    public static TokenTree FromBias(ReadOnlySpan<float> bias)
    {
        bool[] mask = new bool[bias.Length];
        bool adds = false;
        for (int i = 0; i < bias.Length; i++)
        {
            if (float.IsNaN(bias[i]) || float.IsPositiveInfinity(bias[i]))
            {
                throw Bad($"element {i} of its bias is {bias[i]}; -∞ hides, any finite number is added");
            }

            mask[i] = float.IsFinite(bias[i]);
            adds |= mask[i] && bias[i] != 0;
        }

        return FromMask(mask, adds ? bias.ToArray() : null);
    }

    /// <summary>A tree from depth-first numbers: node i sees node j when j &lt;= i and start[i] &lt;= end[j]. Nodes are in depth-first order.</summary>
    /// <param name="start">[nodes] each node's number in depth-first order; nodes of a chain may share one.</param>
    /// <param name="end">[nodes] the number of each node's last descendant.</param>
    /// <exception cref="FaultException">The lists differ in length, or what nodes see is no tree (65).</exception>
    public static TokenTree FromDepthFirst(ReadOnlySpan<int> start, ReadOnlySpan<int> end)
    {
        if (start.Length != end.Length)
        {
            throw Bad($"there are {start.Length} depth-first starts and {end.Length} ends: one of each for every node");
        }

        bool[] mask = new bool[start.Length * start.Length];
        for (int i = 0; i < start.Length; i++)
        {
            for (int j = 0; j <= i; j++)
            {
                mask[(i * start.Length) + j] = start[i] <= end[j];
            }
        }

        return FromMask(mask, null);
    }

    /// <summary>The tree in short: <c>5 nodes, parents -1 0 0 1 1</c>.</summary>
    public override string ToString() => $"{Count} nodes, parents {string.Join(' ', _parents)}{(Bias is null ? "" : ", with a bias")}";

    /// <summary>The nodes from a root to a node, both included.</summary>
    public int[] PathTo(int node)
    {
        int[] path = new int[_depths[node] + 1];
        for (int depth = _depths[node]; depth >= 0; depth--, node = _parents[node])
        {
            path[depth] = node;
        }

        return path;
    }

    /// <summary>[nodes, nodes] true where the row's node sees the column's.</summary>
    public bool[] ToMask()
    {
        bool[] mask = new bool[Count * Count];
        for (int node = 0; node < Count; node++)
        {
            for (int seen = node; seen >= 0; seen = _parents[seen])
            {
                mask[(node * Count) + seen] = true;
            }
        }

        return mask;
    }

    /// <summary>[nodes, nodes] 0, or the tree's own bias, where the row's node sees the column's; -∞ elsewhere.</summary>
    public float[] ToBias() => [.. ToMask().Select((seen, i) => !seen ? float.NegativeInfinity : Bias?[i] ?? 0)];

    /// <summary>Depth-first starts and ends, [nodes] each.</summary>
    /// <exception cref="InvalidOperationException">The nodes are not in depth-first order; see <see cref="DepthFirstOrder"/>.</exception>
    public (int[] Start, int[] End) ToDepthFirst()
    {
        int[] end = [.. Enumerable.Range(0, Count)];
        for (int node = Count - 1; node > 0; node--)
        {
            if (_parents[node] >= 0)
            {
                end[_parents[node]] = Math.Max(end[_parents[node]], end[node]);
            }
        }

        if (!DepthFirstOrder().SequenceEqual(Enumerable.Range(0, Count)))
        {
            throw new InvalidOperationException("Depth-first numbers need nodes in depth-first order: reorder the tree by DepthFirstOrder() first.");
        }

        return ([.. Enumerable.Range(0, Count)], end);
    }

    /// <summary>[nodes] the nodes in depth-first order, siblings as they stand.</summary>
    public int[] DepthFirstOrder()
    {
        ILookup<int, int> children = Enumerable.Range(0, Count).ToLookup(node => _parents[node]);
        int[] order = new int[Count];
        var waiting = new Stack<int>(children[-1].Reverse());
        for (int next = 0; waiting.TryPop(out int node); next++)
        {
            order[next] = node;
            foreach (int child in children[node].Reverse())
            {
                waiting.Push(child);
            }
        }

        return order;
    }

    /// <summary>The same tree with its nodes in another order.</summary>
    /// <param name="order">[nodes] which node comes first, second, ...</param>
    /// <exception cref="FaultException">A child would come before its parent (65).</exception>
    public TokenTree Reorder(ReadOnlySpan<int> order)
    {
        int[] place = new int[Count];
        for (int i = 0; i < order.Length; i++)
        {
            place[order[i]] = i;
        }

        int[] nodes = order.ToArray();
        int[] parents = [.. nodes.Select(node => _parents[node] < 0 ? -1 : place[_parents[node]])];
        TokenTree tree = FromParents(parents);
        float[]? bias = Bias is null ? null : [.. nodes.SelectMany(row => nodes.Select(column => Bias[(row * Count) + column]))];
        return new TokenTree(tree._parents, bias);
    }

    private static TokenTree FromMask(ReadOnlySpan<bool> mask, float[]? bias)
    {
        int count = (int)Math.Sqrt(mask.Length);
        if (count * count != mask.Length)
        {
            throw Bad($"its mask has {mask.Length} elements, not [nodes, nodes]");
        }

        int[] parents = new int[count];
        for (int node = 0; node < count; node++)
        {
            // The parent is the last that the node sees beside itself: parents come first, so every ancestor before it.
            ReadOnlySpan<bool> row = mask.Slice(node * count, count);
            parents[node] = row[..node].LastIndexOf(true);
            int parent = parents[node];
            ReadOnlySpan<bool> before = parent < 0 ? [] : mask.Slice(parent * count, node);
            bool isPath = row[node] && !row[(node + 1)..].Contains(true) && (parent < 0 || row[..node].SequenceEqual(before));
            if (!isPath)
            {
                throw Bad($"node {node} must see itself, its parent and what its parent sees, and no other node; row {node} of its mask is no such path");
            }
        }

        return new TokenTree(FromParents(parents)._parents, bias);
    }

    private static bool IsInCycle(ReadOnlySpan<int> parents, int node)
    {
        int ancestor = parents[node];
        for (int steps = 0; steps < parents.Length && ancestor >= 0 && ancestor < parents.Length; steps++, ancestor = parents[ancestor])
        {
            if (ancestor == node)
            {
                return true;
            }
        }

        return false;
    }

    private static int Compare(int[] first, int[] second) => first.AsSpan().SequenceCompareTo(second);

    private static FaultException Bad(string what) => new(FaultCode.BadInput, $"This is no token tree: {what}.");
}
