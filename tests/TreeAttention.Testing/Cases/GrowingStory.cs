using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using Xunit;

namespace TreeAttention.Testing.Cases;

/// <summary>A cache through all that can happen to it, with steps of a plan held against the tree's after each change.</summary>
internal static class GrowingStory
{
    private const int KvHeads = 2;
    private const int QueryHeads = 4;
    private const int HeadDim = 8;
    private const int ValueDim = 4;

    /// <summary>Plays the story on one rank.</summary>
    /// <returns>How many outputs were compared.</returns>
    public static int Play(RankContext context, AttentionAlgorithm algorithm)
    {
        using var cache = new ShardedKvCache(
            context, new CacheOptions { Layers = 2, Rows = 3, KvHeads = KvHeads, HeadDim = HeadDim, ValueDim = ValueDim, MaxLength = 2100 });
        using DecodeStep tree = StepOver(context, cache, AttentionAlgorithm.Tree);
        using DecodeStep step = StepOver(context, cache, algorithm);
        int compared = 0;
        float[] before = [];
        foreach (Action change in Changes(cache))
        {
            change();
            for (int layer = 0; layer < 2; layer++)
            {
                float[] expected = Attend(tree, layer);
                float[] got = Attend(step, layer);

                float tolerance = 1e-5f * Math.Max(1e-3f, expected.Max(MathF.Abs));
                Assert.All(expected.Zip(got), pair => Assert.InRange(pair.Second, pair.First - tolerance, pair.First + tolerance));
                Assert.NotEqual(before, expected);
                (before, compared) = (expected, compared + expected.Length);
            }
        }

        return compared;
    }

    // Row 1 takes no part in the steps: its pages lie between those of the others.
    private static Action[] Changes(ShardedKvCache cache) =>
    [
        () => Append(cache, 0, 3), // fewer keys than ranks, and a row without keys
        () => Append(cache, 1, 700),
        () => Append(cache, 0, 700),
        () => Append(cache, 2, 505),
        () => cache.Append(1, [2], Numbers(5, 8 * KvHeads * HeadDim), Numbers(6, 8 * KvHeads * ValueDim)), // layer 1 alone crosses a page
        () => Append(cache, 2, 7),
        () => cache.Truncate(0, 520),
        () => cache.Release(1),
        () => Append(cache, 2, 900), // into slots that other rows had
        () => Append(cache, 0, 60),
        () => // as long as before, in other slots
        {
            cache.Release(0);
            Append(cache, 1, 40);
            Append(cache, 0, 580);
        },
        () => cache.Fork(2, 0, 600), // two pages shared, of the second fewer keys
        () => Append(cache, 0, 1), // copies the second
        () => cache.Keep(2, 1000, [3, 9, 100]),
        () => cache.Release(2),
    ];

    private static DecodeStep StepOver(RankContext context, ShardedKvCache cache, AttentionAlgorithm algorithm) => new(context, cache, new DecodeOptions
    {
        QueryLength = 2,
        QueryHeads = QueryHeads,
        Rows = [2, 0],
        Attention = new AttentionOptions { Causal = true },
        Plan = new AttentionPlan(algorithm, ReductionKind.AllGather, QueryPlacement.Replicated),
    });

    private static void Append(ShardedKvCache cache, int row, int tokens)
    {
        for (int layer = 0; layer < 2; layer++)
        {
            int seed = (cache.LengthOf(layer, row) * 10) + (row * 3) + layer;
            cache.Append(layer, [row], Numbers(seed, tokens * KvHeads * HeadDim), Numbers(seed + 100_000, tokens * KvHeads * ValueDim));
        }
    }

    private static float[] Attend(DecodeStep step, int layer)
    {
        float[] output = new float[2 * 2 * QueryHeads * ValueDim];
        float[] lse = new float[2 * 2 * QueryHeads];
        step.Attend(layer, Numbers(7, 2 * 2 * QueryHeads * HeadDim), output, lse);
        return [.. output, .. lse.Select(sum => float.IsNegativeInfinity(sum) ? 0 : sum)];
    }

    private static float[] Numbers(int seed, int count)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (2 * random.NextSingle()) - 1)];
    }
}
