using System;
using System.Linq;

namespace TreeAttention.Ranks;

/// <summary>A rank of a job that attends without a cache: to ragged shards, of which one is empty, held against one rank with all keys.</summary>
internal static class ShardedRank
{
    private const int Keys = 1100;

    private static readonly AttendOptions _options = new()
    {
        Batch = 2,
        QueryLength = 3,
        QueryHeads = 4,
        KvHeads = 2,
        HeadDim = 16,
        ValueDim = 8,
        Attention = new AttentionOptions { Causal = true },
    };

    /// <summary>Runs under mpiexec with three ranks; what does not hold ends the job with 1.</summary>
    internal static int Run()
    {
        using var group = AttentionGroup.Join(new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 });
        using AttentionGroup alone = AttentionGroup.JoinInProcess(1, new GroupOptions { Device = DeviceKind.Cpu, Threads = 1 })[0];
        int[] firsts = [0, 900, 900, Keys]; // rank 1 has none
        float[] query = Numbers(1, 2 * 3 * 4 * 16);
        (float[] expected, float[] expectedLse) = alone.Attend(query, Part(2, 32, 0, Keys), Part(3, 16, 0, Keys), _options);

        (float[] output, float[] lse) = group.Attend(
            query, Part(2, 32, firsts[group.Rank], firsts[group.Rank + 1]), Part(3, 16, firsts[group.Rank], firsts[group.Rank + 1]), _options);

        bool isRight = Worst(output, expected) < 1e-5f && Worst(lse, expectedLse) < 1e-5f && expected.Max() > 1e-3f;
        if (group.IsRoot && isRight)
        {
            Console.WriteLine("ok attend");
        }

        return isRight ? 0 : 1;
    }

    private static float Worst(float[] actual, float[] expected) => actual.Zip(expected).Max(pair => MathF.Abs(pair.First - pair.Second));

    // [batch, keys from first to end, width] of the whole [batch, keys, width].
    private static float[] Part(int seed, int width, int first, int end)
    {
        float[] whole = Numbers(seed, 2 * Keys * width);
        return [.. whole[(first * width)..(end * width)], .. whole[((Keys + first) * width)..((Keys + end) * width)]];
    }

    private static float[] Numbers(int seed, int count)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (2 * random.NextSingle()) - 1)];
    }
}
