using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;
using TreeAttention.Tests.Devices.Cpu;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

/// <summary>Token trees: their encodings say the same, and each node is causal attention over its own branch.</summary>
public sealed class TokenTreeTests
{
    // The published shapes, as the number of children of each node, breadth first.
    private static readonly int[] _medusa64 = [10, 10, 7, 3, 2, 1, 1, 1, 1, 1, 1, 10, 3, 2, 1, 1, 1, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, .. new int[10], 2];
    private static readonly int[] _eagle26 = [4, 3, 2, 2, 1, 3, 2, 2, 1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 2];

    public static TheoryData<string> Shapes => ["medusa", "eagle", "one node", "chain", "star", "two roots", "random 1", "random 2", "random 3"];

    public static TheoryData<string, int[]> NoTrees => new()
    {
        { "its own ancestor", [-1, 2, 1] },
        { "its own ancestor", [-1, 0, 2] },
        { "before its parent", [-1, 2, 0] },
        { "node 0 is a root", [0, 0] },
        { "nodes are 0 to 1", [-1, 2] },
        { "nodes are 0 to 1", [-1, -2] },
    };

    [Theory, MemberData(nameof(Shapes))]
    public void All_encodings_give_the_same_tree(string name)
    {
        TokenTree tree = TreeOf(name);
        TokenTree inOrder = tree.Reorder(tree.DepthFirstOrder());
        (int[] start, int[] end) = inOrder.ToDepthFirst();

        Assert.Equal(tree.Parents, TokenTree.FromMask(tree.ToMask()).Parents);
        Assert.Equal(tree.Parents, TokenTree.FromBias(tree.ToBias()).Parents);
        Assert.Equal(inOrder.Parents, TokenTree.FromDepthFirst(start, end).Parents);
        if (tree.Parents[1..].IndexOf(-1) < 0)
        {
            Assert.Equal(Names(tree), Names(TokenTree.FromPaths(PathsOf(tree)))); // paths begin at one root
        }
    }

    [Theory, MemberData(nameof(Shapes))]
    public void Each_node_is_causal_attention_over_its_own_branch(string name)
    {
        TokenTree tree = TreeOf(name);
        using CpuDevice device = CpuWidths.Create(256, 2);
        foreach ((int context, int window, float slope) in new[] { (0, -1, 0f), (40, -1, 0.3f), (700, 3, 0.1f), (5, 6, -0.05f) })
        {
            var options = new AttentionOptions { Causal = true, WindowLeft = window, AlibiSlopes = slope == 0 ? null : [slope, slope / 2] };
            AttentionShape shape = new(1, tree.Count, context + tree.Count, 2, 1, 24, 16);
            CpuCase whole = new CpuCase { Shape = shape, Options = TokenTreeMask.Apply(options, 1, tree.Count, [tree]) }.Fill();

            PartialResult actual = whole.Run(device);

            for (int node = 0; node < tree.Count; node++)
            {
                PartialResult alone = BranchOf(whole, tree, node, context, options).Expected();
                for (int head = 0; head < 2; head++)
                {
                    int row = (head * tree.Count) + node;
                    Assert.Equal(alone.LogSum[head], actual.LogSum[row], 1e-4);
                    Assert.All(Enumerable.Range(0, 16), e => Assert.Equal(alone.Output[(head * 16) + e], actual.Output[(row * 16) + e], 1e-5f));
                }
            }
        }
    }

    [Theory, MemberData(nameof(Shapes))]
    public void Attention_by_depth_first_order_and_by_bias_is_that_of_the_tree(string name)
    {
        TokenTree tree = TreeOf(name);
        tree = tree.Reorder(tree.DepthFirstOrder());
        (int[] start, int[] end) = tree.ToDepthFirst();
        AttentionShape shape = new(1, tree.Count, 90 + tree.Count, 2, 1, 24, 16);
        using CpuDevice device = CpuWidths.Create(256, 2);
        CpuCase Case(AttentionOptions options) => new CpuCase { Shape = shape, Options = options }.Fill();

        float[] byParents = Case(TokenTreeMask.Apply(new(), 1, tree.Count, [tree])).Run(device).Output;
        float[] byOrder = Case(new() { DfsStart = start, DfsEnd = [.. Enumerable.Repeat(int.MaxValue, 90), .. end] }).Run(device).Output;
        float[] byBias = Case(new() { TailBias = tree.ToBias(), TailBiasLength = tree.Count }).Run(device).Output;

        Assert.Equal(byParents, byOrder);
        Assert.Equal(byParents, byBias);
    }

    [Fact]
    public void A_bias_that_adds_is_kept_and_counts()
    {
        float hidden = float.NegativeInfinity;
        var tree = TokenTree.FromBias([1, hidden, hidden, 0.5f, 1, hidden, 1, hidden, 1]);

        AttentionOptions options = TokenTreeMask.Apply(new() { QueryLengths = [3, 1] }, 2, 3, [tree, TokenTree.FromParents([-1])]);

        Assert.Equal([-1, 0, 0], tree.Parents.ToArray());
        Assert.Equal([1, hidden, hidden, 0.5f, 1, hidden, 1, hidden, 1], tree.ToBias());
        Assert.Equal([1, 0, 0, 0.5f, 1, 0, 1, 0, 1, .. new float[9]], options.TailBias!);
        Assert.Equal([true, true, true], options.TailMask![9..12]);
    }

    [Theory, MemberData(nameof(NoTrees))]
    public void What_is_no_tree_is_refused(string message, int[] parents)
    {
        FaultException fault = Assert.Throws<FaultException>(() => TokenTree.FromParents(parents));

        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.Contains(message, fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Masks_biases_orders_and_paths_that_are_no_trees_are_refused()
    {
        Assert.Throws<FaultException>(() => TokenTree.FromMask([true, false, true])); // not square
        Assert.Throws<FaultException>(() => TokenTree.FromMask([true, true, true, true])); // sees what comes later
        Assert.Throws<FaultException>(() => TokenTree.FromMask([true, false, true, false])); // does not see itself
        Assert.Throws<FaultException>(() => TokenTree.FromMask([true, false, false, true, true, false, false, true, true])); // leaves its grandparent out
        Assert.Throws<FaultException>(() => TokenTree.FromBias([float.NaN]));
        Assert.Throws<FaultException>(() => TokenTree.FromBias([float.PositiveInfinity]));
        Assert.Throws<FaultException>(() => TokenTree.FromDepthFirst([0, 1], [0]));
        Assert.Throws<FaultException>(() => TokenTree.FromPaths([[0, 1]]));
        Assert.Throws<FaultException>(() => TokenTree.FromPaths([[0], [0]]));
        Assert.Throws<InvalidOperationException>(() => TokenTree.FromParents([-1, 0, 0, 1]).ToDepthFirst());
    }

    [Fact]
    public void A_tree_does_not_go_with_other_queries_or_tails_of_its_own()
    {
        TokenTree[] trees = [TokenTree.FromParents([-1, 0])];

        Assert.Throws<ShapeMismatchException>(() => TokenTreeMask.Apply(new(), 1, 3, trees));
        Assert.Throws<ShapeMismatchException>(() => TokenTreeMask.Apply(new() { QueryLengths = [2, 1] }, 2, 2, trees));
        Assert.Throws<ShapeMismatchException>(() => TokenTreeMask.Apply(new(), 3, 2, [trees[0], trees[0]]));
        Assert.Throws<ShapeMismatchException>(() => TokenTreeMask.Apply(new() { TailMask = [true, true], TailMaskLength = 1 }, 1, 2, trees));
    }

    [Fact]
    public void Paths_run_from_the_root_to_the_node()
    {
        TokenTree tree = TreeOf("eagle");

        Assert.Equal([0, 1, 5, 13, 21, 25], tree.PathTo(25));
        Assert.Equal(5, tree.Depths[25]);
        Assert.Equal([0], tree.PathTo(0));
    }

    private static TokenTree TreeOf(string name) => TokenTree.FromParents(name switch
    {
        "medusa" => BreadthFirst(_medusa64),
        "eagle" => BreadthFirst(_eagle26),
        "one node" => [-1],
        "chain" => [-1, 0, 1, 2, 3],
        "star" => [-1, 0, 0, 0, 0, 0],
        "two roots" => [-1, 0, -1, 2, 0, 2, 3],
        _ => RandomParents(name[^1]),
    });

    private static int[] BreadthFirst(int[] children) => [-1, .. children.SelectMany((count, node) => Enumerable.Repeat(node, count))];

    private static int[] RandomParents(int seed)
    {
        var random = new Random(seed);
        return [-1, .. Enumerable.Range(1, 20).Select(node => random.Next(node))];
    }

    private static IEnumerable<string> Names(TokenTree tree) => PathsOf(tree).Select(path => string.Join(',', path)).Order(StringComparer.Ordinal);

    // Child numbers along the path to each node but the root.
    private static IEnumerable<int[]> PathsOf(TokenTree tree)
    {
        int[] parents = tree.Parents.ToArray();
        int[] numbers = [.. parents.Select((parent, node) => parents.Take(node).Count(other => other == parent))];
        return Enumerable.Range(1, tree.Count - 1).Select(node => tree.PathTo(node).Skip(1).Select(on => numbers[on]).ToArray());
    }

    // The context, then the nodes on the path: one query at its end.
    private static CpuCase BranchOf(CpuCase whole, TokenTree tree, int node, int context, AttentionOptions options)
    {
        int[] keys = [.. Enumerable.Range(0, context), .. tree.PathTo(node).Select(on => context + on)];
        (int headDim, int valueDim) = (whole.Shape.HeadDim, whole.Shape.ValueDim);
        return new CpuCase { Shape = whole.Shape with { QueryLength = 1, KeyLength = keys.Length }, Options = options }.Fill().Change(branch =>
        {
            for (int head = 0; head < whole.Shape.QueryHeads; head++)
            {
                whole.Query.AsSpan(((head * tree.Count) + node) * headDim, headDim).CopyTo(branch.Query.AsSpan(head * headDim));
            }

            for (int i = 0; i < keys.Length; i++)
            {
                whole.Key.AsSpan(keys[i] * headDim, headDim).CopyTo(branch.Key.AsSpan(i * headDim));
                whole.Value.AsSpan(keys[i] * valueDim, valueDim).CopyTo(branch.Value.AsSpan(i * valueDim));
            }
        });
    }
}
