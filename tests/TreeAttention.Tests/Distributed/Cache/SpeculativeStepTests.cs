using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>Token trees over a sharded cache: each node is decoding after its own branch, and a committed path is as if it alone had been appended.</summary>
public sealed class SpeculativeStepTests
{
    private const int Layers = 2;
    private const int Heads = 4;
    private const int KvHeads = 2;
    private const int Dim = 16;

    // 508: the tree lies over the border of two pages, which belong to different ranks as soon as there are two, and with chunks of 510
    // over the border of two of those.
    private static readonly int[] _before = [508, 130];
    private static readonly TokenTree _tree = TokenTree.FromParents([-1, 0, 0, 1, 1, 2, 3, 3, 5, 6]);
    private static readonly int[] _path = [0, 1, 3, 6, 9];

    public static TheoryData<int> Ranks => [1, 2, 3, 5];

    [Theory, MemberData(nameof(Ranks))]
    public void Each_node_gets_what_the_next_token_after_its_branch_gets(int ranks)
    {
        float[][] whole = RunOn(ranks, (context, cache) => Verify(context, cache));
        int width = Heads * Dim;

        for (int node = 0; node < _tree.Count; node++)
        {
            int[] branch = _tree.PathTo(node);
            float[][] alone = RunOn(1, (context, cache) => DecodeChain(context, cache, branch));
            for (int layer = 0; layer < Layers; layer++)
            {
                for (int row = 0; row < _before.Length; row++)
                {
                    float[] expected = alone[0].AsSpan(((layer * _before.Length) + row) * width, width).ToArray();
                    Assert.All(whole, outputs => Assert.All(
                        expected.Zip(outputs.Skip(((((layer * _before.Length) + row) * _tree.Count) + node) * width).Take(width)),
                        pair => Assert.Equal(pair.First, pair.Second, 1e-5f)));
                }
            }
        }
    }

    [Theory, MemberData(nameof(Ranks))]
    public void A_committed_path_is_as_if_it_alone_had_been_appended(int ranks)
    {
        float[][] committed = RunOn(ranks, (context, cache) =>
        {
            using SpeculativeStep step = StepOver(context, cache);
            RunTree(step, cache);
            step.Commit(0, _path);
            step.Commit(1, _path.AsSpan(0, 2));
            Assert.Equal([513, 132], Enumerable.Range(0, 2).Select(row => cache.LengthOf(1, row)));
            return DecodeNext(context, cache);
        });
        float[][] appended = RunOn(ranks, (context, cache) =>
        {
            for (int layer = 0; layer < Layers; layer++)
            {
                cache.Append(layer, [0], Nodes(10 + layer, 0, _path, KvHeads), Nodes(20 + layer, 0, _path, KvHeads));
                cache.Append(layer, [1], Nodes(10 + layer, 1, _path[..2], KvHeads), Nodes(20 + layer, 1, _path[..2], KvHeads));
            }

            return DecodeNext(context, cache);
        });

        Assert.All(committed.Zip(appended), pair => Assert.True(Bits.Equal(pair.First, pair.Second)));
    }

    [Fact]
    public void A_rejected_tree_leaves_the_cache_as_it_was_and_another_can_follow()
    {
        float[][] rejected = RunOn(3, (context, cache) =>
        {
            using SpeculativeStep step = StepOver(context, cache);
            RunTree(step, cache);
            step.Reject(0);
            step.Reject(1);
            RunTree(step, cache);
            step.Reject(0);
            step.Commit(1, []);
            return DecodeNext(context, cache);
        });
        float[][] untouched = RunOn(3, DecodeNext);

        Assert.All(rejected.Zip(untouched), pair => Assert.True(Bits.Equal(pair.First, pair.Second)));
    }

    [Fact]
    public void The_comparison_notices_a_node_out_of_its_branch()
    {
        float[] right = RunOn(1, (context, cache) => DecodeChain(context, cache, [0, 1, 3]))[0];
        float[] wrong = RunOn(1, (context, cache) => DecodeChain(context, cache, [0, 2, 3]))[0];

        Assert.True(right.Zip(wrong).Max(pair => Math.Abs(pair.First - pair.Second)) > 1e-4f);
    }

    [Fact]
    public void What_is_no_path_and_what_was_not_run_is_refused()
    {
        RunOn(2, (context, cache) =>
        {
            using SpeculativeStep step = StepOver(context, cache);
            Assert.Throws<InvalidOperationException>(() => step.Commit(0, [0]));
            step.Run(0, Nodes(1, _tree.Count * Heads), Nodes(10, _tree.Count * KvHeads), Nodes(20, _tree.Count * KvHeads), Output(), Lse());
            Assert.Throws<InvalidOperationException>(() => step.Commit(0, [0]));
            Assert.Throws<InvalidOperationException>(() => step.Run(
                0, Nodes(1, _tree.Count * Heads), Nodes(10, _tree.Count * KvHeads), Nodes(20, _tree.Count * KvHeads), Output(), Lse()));
            step.Run(1, Nodes(2, _tree.Count * Heads), Nodes(11, _tree.Count * KvHeads), Nodes(21, _tree.Count * KvHeads), Output(), Lse());
            Assert.Throws<ArgumentException>(() => step.Commit(0, [1]));
            Assert.Throws<ArgumentException>(() => step.Commit(0, [0, 3]));
            Assert.Throws<ArgumentException>(() => step.Commit(0, [0, 99]));
            step.Commit(0, [0, 2]);
            Assert.Equal(510, cache.LengthOf(0));
            return [];
        });
    }

    private static float[][] RunOn(int ranks, Func<RankContext, ShardedKvCache, float[]> body)
    {
        float[][] results = new float[ranks][];
        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, new CacheOptions
            {
                Layers = Layers,
                Rows = _before.Length,
                KvHeads = KvHeads,
                HeadDim = Dim,
                ValueDim = Dim,
                MaxLength = 600,
                Rotary = new RotaryOptions(8),
            });
            for (int layer = 0; layer < Layers; layer++)
            {
                for (int row = 0; row < _before.Length; row++)
                {
                    int count = _before[row] * KvHeads * Dim;
                    cache.Append(layer, [row], Numbers(30 + layer, row, count), Numbers(40 + layer, row, count));
                }
            }

            results[context.Transport.Rank] = body(context, cache);
        });
        return results;
    }

    private static DecodeOptions Options(int queries) => new()
    {
        QueryLength = queries,
        QueryHeads = Heads,
        Attention = new AttentionOptions { LocalChunk = 510, WindowLeft = 300, AlibiSlopes = [0.1f, 0.05f, 0.02f, 0.01f] },
        Plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Butterfly, QueryPlacement.Replicated),
    };

    private static SpeculativeStep StepOver(RankContext context, ShardedKvCache cache) => new(context, cache, Options(1), _tree);

    // [layers, rows, nodes, heads, dim]
    private static float[] Verify(RankContext context, ShardedKvCache cache)
    {
        using SpeculativeStep step = StepOver(context, cache);
        return RunTree(step, cache);
    }

    private static float[] RunTree(SpeculativeStep step, ShardedKvCache cache)
    {
        Assert.Equal(_before, Enumerable.Range(0, 2).Select(row => cache.LengthOf(1, row)));
        return [.. Enumerable.Range(0, Layers).SelectMany(layer =>
        {
            float[] output = Output();
            step.Run(
                layer, Nodes(1 + layer, _tree.Count * Heads), Nodes(10 + layer, _tree.Count * KvHeads), Nodes(20 + layer, _tree.Count * KvHeads),
                output, Lse());
            return output;
        })];
    }

    // [layers, rows, heads, dim] of the last token of a branch, decoded one token after the other.
    private static float[] DecodeChain(RankContext context, ShardedKvCache cache, int[] branch)
    {
        using var step = new DecodeStep(context, cache, Options(1));
        return [.. Enumerable.Range(0, Layers).SelectMany(layer =>
        {
            float[] output = new float[_before.Length * Heads * Dim];
            foreach (int node in branch)
            {
                step.Run(layer, Rows(1 + layer, node, Heads), Rows(10 + layer, node, KvHeads), Rows(20 + layer, node, KvHeads), output, new float[2 * Heads]);
            }

            return output;
        })];
    }

    private static float[] DecodeNext(RankContext context, ShardedKvCache cache)
    {
        using var step = new DecodeStep(context, cache, Options(1));
        return [.. Enumerable.Range(0, Layers).SelectMany(layer =>
        {
            float[] output = new float[_before.Length * Heads * Dim];
            step.Run(
                layer, Numbers(50, layer, output.Length), Numbers(51, layer, 2 * KvHeads * Dim), Numbers(52, layer, 2 * KvHeads * Dim), output,
                new float[2 * Heads]);
            return output;
        })];
    }

    private static float[] Output() => new float[_before.Length * _tree.Count * Heads * Dim];

    private static float[] Lse() => new float[_before.Length * _tree.Count * Heads];

    // [rows, nodes, heads, dim]
    private static float[] Nodes(int which, int perRow) =>
        [.. Enumerable.Range(0, _before.Length).SelectMany(row => Numbers(which, row, perRow * Dim))];

    // [nodes given, heads, dim] of one row.
    private static float[] Nodes(int which, int row, int[] nodes, int heads) =>
        [.. nodes.SelectMany(node => Numbers(which, row, _tree.Count * heads * Dim).Skip(node * heads * Dim).Take(heads * Dim))];

    // [rows, heads, dim] of one node.
    private static float[] Rows(int which, int node, int heads) =>
        [.. Enumerable.Range(0, _before.Length).SelectMany(row => Nodes(which, row, [node], heads))];

    private static float[] Numbers(int which, int row, int count)
    {
        var random = new Random((which * 100) + row);
        return [.. Enumerable.Range(0, count).Select(_ => (2 * random.NextSingle()) - 1)];
    }
}
