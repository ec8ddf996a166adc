using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Testing.Cases;

/// <summary>Shapes that break padding, division and alignment, each with options of its own.</summary>
internal static class AttentionCases
{
    public static IReadOnlyList<AttentionCase> All { get; } =
    [
        new("one key", new AttentionShape(1, 1, 1, 1, 1, 1, 1), new AttentionOptions()),
        new("no key", new AttentionShape(2, 2, 0, 2, 1, 4, 3), new AttentionOptions()),
        new("causal", new AttentionShape(2, 3, 29, 4, 2, 5, 3), new AttentionOptions { Causal = true }),
        new("square", new AttentionShape(1, 13, 13, 2, 2, 8, 8), new AttentionOptions { Causal = true }),
        new("window", new AttentionShape(1, 5, 23, 6, 3, 8, 8), new AttentionOptions
        {
            WindowLeft = 4,
            WindowRight = 2,
            Softcap = 1.5f,
            AlibiSlopes = [0.5f, 0.25f, 0.1f, 0.05f, 0.03f, 0.01f],
        }),
        new("ragged", new AttentionShape(3, 4, 7, 2, 1, 3, 5), new AttentionOptions
        {
            Causal = true,
            KeyLengths = [7, 0, 3],
            QueryLengths = [4, 2, 0],
            AlibiSlopes = [0.5f, 0.1f, 1f, 0.3f, 0.2f, 0.7f],
        }),
        new("tail", new AttentionShape(2, 3, 40, 2, 2, 7, 4), new AttentionOptions
        {
            KeyLengths = [40, 4],
            TailMask = [.. Enumerable.Range(0, 2 * 3 * 6).Select(i => i % 3 != 1)],
            TailMaskLength = 6,
            TailBias = [.. Enumerable.Range(0, 3 * 5).Select(i => i == 7 ? float.NegativeInfinity : (i % 4) - 1.5f)],
            TailBiasLength = 5,
        }),
        new("tree mask", new AttentionShape(1, 10, 10, 2, 1, 6, 6), new AttentionOptions
        {
            DfsStart = [0, 0, 0, 0, 1, 1, 2, 2, 2, 3],
            DfsEnd = [3, 3, 3, 3, 1, 1, 2, 2, 2, 3],
        }),
        new("packed", new AttentionShape(1, 11, 31, 2, 1, 5, 4), new AttentionOptions
        {
            PackedQueries = [0, 4, 4, 6, 11],
            PackedKeys = [0, 9, 14, 14, 31],
            Causal = true,
            WindowLeft = 12,
            AlibiSlopes = [0.5f, 0.1f, 1f, 0.3f, 0.2f, 0.7f, 0.4f, 0.6f],
        }),
        new("left padding", new AttentionShape(2, 3, 25, 2, 1, 4, 4), new AttentionOptions { KeyStarts = [9, 25], KeyLengths = [20, 25] }),
        new("chunks", new AttentionShape(2, 6, 31, 2, 1, 5, 4), new AttentionOptions
        {
            LocalChunk = 5,
            KeyStarts = [3, 0],
            KeyLengths = [29, 31],
            AlibiSlopes = [0.5f, 0.1f],
        }),
        new("depths", new AttentionShape(2, 5, 22, 2, 2, 4, 4), new AttentionOptions
        {
            QueryDepths = [0, 1, 1, 2, 1],
            KeyLengths = [22, 4],
            Causal = true,
            WindowLeft = 3,
            AlibiSlopes = [0.5f, 0.1f],
        }),
        new("values in keys, pages", new AttentionShape(1, 2, 1030, 3, 1, 6, 4), new AttentionOptions { WindowLeft = 900 }, valuesInKeys: true),
    ];

    /// <summary>All layouts that fit any length; with ten keys or more also explicit lengths with empty shards.</summary>
    public static IEnumerable<ShardLayout> LayoutsFor(AttentionShape shape, int ranks)
    {
        yield return ShardLayout.Contiguous;
        yield return ShardLayout.Zigzag;
        yield return ShardLayout.Striped;
        yield return ShardLayout.Cyclic(3);
        yield return ShardLayout.Lanes;
        int[] lengths = new int[ranks];
        lengths[ranks / 2] = shape.KeyLength;
        if (shape.KeyLength >= 10)
        {
            lengths[ranks / 2] -= 3;
            lengths[^1] += 3;
        }

        yield return ShardLayout.Lengths(lengths);
    }
}
