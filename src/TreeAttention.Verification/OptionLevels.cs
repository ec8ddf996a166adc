using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Verification;

/// <summary>Every option of an attention call in its ways of being used, as levels for a <see cref="CoveringArray"/>; level 0 is always "not used".</summary>
internal static class OptionLevels
{
    private const int Scale = 0, Causal = 1, Window = 2, Softcap = 3, Alibi = 4, Sinks = 5, KeyLengths = 6, QueryLengths = 7, DepthFirst = 8,
        TailMask = 9, TailBias = 10, LeftPadding = 11, Packed = 12, TokenTree = 13, Chunks = 14, LseBase = 15;

    private const int LargeScale = 2; // -0.7

    // Two options that say the same thing in two ways: bounds of packed sequences are their lengths, and a token tree is an order
    // of the queries and a mask over their own keys.
    private static readonly (int First, int Second)[] _apart =
    [
        (Packed, KeyLengths), (Packed, QueryLengths), (Packed, LeftPadding), (Packed, TokenTree), (TokenTree, DepthFirst),
        (TokenTree, TailMask),
    ];

    // What a rule of these hides or adds is of single keys, not of an interval.
    private static readonly int[] _ofSingleKeys = [Alibi, DepthFirst, TailMask, TailBias, TokenTree];

    /// <summary>Names of the options, in the order of the levels.</summary>
    public static IReadOnlyList<string> Names { get; } =
    [
        "scale", "causal", "window", "softcap", "alibi", "sinks", "key-lengths", "query-lengths", "depth-first", "tail-mask", "tail-bias",
        "left-padding", "packed", "token-tree", "chunk-local", "lse-base",
    ];

    /// <summary>
    /// Levels of each option. Scale: positive, negative, 0; window: left, right, both; ALiBi slopes: of heads, of batch and
    /// heads; sinks: ordinary, huge; depth-first: keys in any order, in long runs; tail mask: short, longer than the keys; tail bias:
    /// for all batch rows, for each; left padding: of some keys, of all keys of some rows; packed sequences: of any lengths, some
    /// without queries or keys; token trees: one for all batch rows, one for each, any depths without a mask; chunks: of a few
    /// positions, of any number; base of the log-sum-exp: 2.
    /// </summary>
    public static IReadOnlyList<int> Counts { get; } = [4, 2, 4, 2, 3, 3, 2, 2, 3, 3, 3, 3, 3, 4, 3, 2];

    /// <summary>
    /// Each level of each option with no other option, and what says where queries stand with one rule that counts from there: a
    /// rule shows what it hides where no other rule hides the same keys. Rules of single keys are there again beside a scale that
    /// makes scores large, for which devices have another arithmetic.
    /// </summary>
    public static IReadOnlyList<int[]> Alone { get; } =
    [
        .. from levels in (int[][])[.. Singles, .. Placed]
           from scale in Array.Exists(_ofSingleKeys, option => levels[option] > 0) ? (int[])[0, LargeScale] : [levels[Scale]]
           select With(levels, Scale, scale),
    ];

    /// <summary>Whether options of these levels can be used in one call; levels that are <see cref="CoveringArray.Open"/> can be 0.</summary>
    /// <param name="level">A level for each of <see cref="Names"/>.</param>
    public static bool GoTogether(IReadOnlyList<int> level) => Array.TrueForAll(_apart, pair => level[pair.First] <= 0 || level[pair.Second] <= 0);

    /// <summary>Options of these levels are for one batch row: packed sequences lie in one.</summary>
    /// <param name="level">A level for each of <see cref="Names"/>.</param>
    public static bool NeedOneBatchRow(IReadOnlyList<int> level) => level[Packed] > 0;

    /// <summary>Random options of these levels for a shape.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="level">A level for each of <see cref="Names"/>; they go together.</param>
    /// <param name="seed">The same seed draws the same options.</param>
    public static AttentionOptions Draw(AttentionShape shape, IReadOnlyList<int> level, int seed)
    {
        var random = new Random(seed);
        int queries = shape.Batch * shape.QueryLength;
        int tail = level[TailMask] == 2 ? shape.KeyLength + 3 : random.Next(1, 6);
        int biasTail = random.Next(1, 9);
        int sequences = SequencesOf(shape, level[Packed], seed);
        T[] Draw<T>(int count, Func<T> draw) => [.. Enumerable.Range(0, count).Select(_ => draw())];
        float Number() => (float)((random.NextDouble() * 4) - 2);
        var options = new AttentionOptions
        {
            Scale = level[Scale] switch { 1 => 0.3f, 2 => -0.7f, 3 => 0f, _ => null },
            Causal = level[Causal] == 1,
            WindowLeft = level[Window] is 1 or 3 ? Side(random, shape) : -1,
            WindowRight = level[Window] is 2 or 3 ? Side(random, shape) : -1,
            Softcap = level[Softcap] == 1 ? 1.5f : 0,
            AlibiSlopes = level[Alibi] > 0 ? Draw(shape.QueryHeads * (level[Alibi] == 2 ? sequences : 1), Number) : null,
            Sinks = level[Sinks] > 0 ? Draw(shape.QueryHeads, () => level[Sinks] == 2 ? 50 * Number() : Number()) : null,
            KeyLengths = level[KeyLengths] == 1
                ? Draw(shape.Batch, () => random.Next(3) == 0 ? 0 : random.Next(shape.KeyLength + 1))
                : null,
            QueryLengths = level[QueryLengths] == 1 ? Draw(shape.Batch, () => random.Next(shape.QueryLength + 1)) : null,
            DfsStart = level[DepthFirst] > 0 ? Draw(queries, () => random.Next(level[DepthFirst] == 1 ? 6 : 3)) : null,
            DfsEnd = level[DepthFirst] switch
            {
                1 => Draw(shape.Batch * shape.KeyLength, () => random.Next(6)),
                2 => Runs(random, shape),
                _ => null,
            },
            TailMask = level[TailMask] > 0 ? Draw(queries * tail, () => random.Next(3) > 0) : null,
            TailMaskLength = level[TailMask] > 0 ? tail : 0,
            TailBias = level[TailBias] > 0
                ? Draw(
                    (level[TailBias] == 2 ? queries : shape.QueryLength) * biasTail,
                    () => random.Next(5) == 0 ? float.NegativeInfinity : Number())
                : null,
            TailBiasLength = level[TailBias] > 0 ? biasTail : 0,
            LseBase = level[LseBase] == 1 ? LogarithmBase.Two : LogarithmBase.Natural,
        };
        options = WithLeftPadding(options, shape, random, level[LeftPadding]);
        options = WithPacking(options, shape, random, level[Packed], sequences);
        options = WithTree(options, shape, random, level[TokenTree]);
        return level[Chunks] == 0 ? options : options with { LocalChunk = random.Next(1, level[Chunks] == 1 ? 9 : shape.KeyLength + 3) };
    }

    private static IEnumerable<int[]> Singles =>
        from option in Enumerable.Range(0, Counts.Count)
        from level in Enumerable.Range(1, Counts[option] - 1)
        select With(new int[Counts.Count], option, level);

    // What says where queries stand, each with what counts from there.
    private static IEnumerable<int[]> Placed =>
        from place in (int[])[KeyLengths, QueryLengths, LeftPadding, Packed, TokenTree]
        from counting in place == TokenTree ? (int[])[Causal, Window, Chunks, Alibi] : place == LeftPadding ? [Chunks] : [Causal, Chunks, Alibi]
        from level in Enumerable.Range(1, Counts[counting] - 1)
        select With(With(new int[Counts.Count], place, Counts[place] - 1), counting, level);

    private static int[] With(int[] levels, int option, int level)
    {
        int[] changed = [.. levels];
        changed[option] = level;
        return changed;
    }

    // Mostly narrow, so that queries feel it on any number of keys.
    private static int Side(Random random, AttentionShape shape) => random.Next(4) switch
    {
        0 => 0,
        1 => random.Next(shape.KeyLength + 2),
        _ => random.Next(1, 4),
    };

    // Ends of keys that ascend in runs of 70 keys, from another key on in each batch row: whole blocks of neighbours can be hidden.
    private static int[] Runs(Random random, AttentionShape shape)
    {
        int[] offset = [.. Enumerable.Range(0, shape.Batch).Select(_ => random.Next(140))];
        return
        [
            .. from row in Enumerable.Range(0, shape.Batch)
               from key in Enumerable.Range(0, shape.KeyLength)
               select (key + offset[row]) / 70 % 3,
        ];
    }

    // Batch rows, or packed sequences: at least three where some are empty.
    private static int SequencesOf(AttentionShape shape, int level, int seed) => level == 0 ? shape.Batch : 1 + level + (seed % 3);

    private static AttentionOptions WithLeftPadding(AttentionOptions options, AttentionShape shape, Random random, int level)
    {
        int Draw() => level == 2 && random.Next(2) == 0 ? shape.KeyLength : random.Next((shape.KeyLength / 2) + 1);
        return level == 0 ? options : options with { KeyStarts = [.. Enumerable.Range(0, shape.Batch).Select(_ => Draw())] };
    }

    private static AttentionOptions WithPacking(AttentionOptions options, AttentionShape shape, Random random, int level, int sequences) =>
        level == 0 ? options : options with
        {
            PackedQueries = Bounds(random, sequences, shape.QueryLength, level == 2 ? 1 : 0),
            PackedKeys = Bounds(random, sequences, shape.KeyLength, level == 2 ? 2 : 0),
        };

    // Bounds of as many sequences; where there is one of that number, counted from 1, it is empty.
    private static int[] Bounds(Random random, int sequences, int length, int empty)
    {
        int[] bounds = [0, .. Enumerable.Range(1, sequences - 1).Select(_ => random.Next(length + 1)).Order(), length];
        if (empty > 0)
        {
            bounds[empty] = bounds[empty - 1];
            bounds[^1] = length;
        }

        return bounds;
    }

    // Depths, and a mask under which each node sees itself and its ancestors. The first nodes of a tree are a tree of their own,
    // so a row of fewer queries has that part of it.
    private static AttentionOptions WithTree(AttentionOptions options, AttentionShape shape, Random random, int level)
    {
        if (level == 0)
        {
            return options;
        }

        int trees = level == 1 ? 1 : shape.Batch;
        int width = shape.QueryLength;
        if (level == 3)
        {
            return options with { QueryDepths = [.. Enumerable.Range(0, trees * width).Select(_ => random.Next(width))] };
        }

        int[] parents = [.. Enumerable.Range(0, trees * width).Select(i => random.Next(2) == 0 ? (i % width) - 1 : random.Next(-1, i % width))];
        int[] depths = new int[parents.Length];
        bool[] mask = new bool[shape.Batch * width * width];
        for (int i = 0; i < parents.Length; i++)
        {
            int node = i % width;
            parents[i] = node > 0 && parents[i] < 0 ? 0 : parents[i]; // one root
            depths[i] = node == 0 ? 0 : depths[i - node + parents[i]] + 1;
        }

        for (int row = 0; row < shape.Batch; row++)
        {
            int nodes = options.QueryLengths is { } lengths ? lengths[row] : width;
            ReadOnlySpan<int> tree = parents.AsSpan(trees == 1 ? 0 : row * width, width);
            for (int node = 0; node < nodes; node++)
            {
                Span<bool> sees = mask.AsSpan(((row * width) + node) * width, width);
                sees[..(width - nodes)].Fill(true); // keys before the tree
                for (int seen = node; seen >= 0; seen = tree[seen])
                {
                    sees[width - nodes + seen] = true;
                }
            }
        }

        return options with { QueryDepths = depths, TailMask = mask, TailMaskLength = width };
    }
}
