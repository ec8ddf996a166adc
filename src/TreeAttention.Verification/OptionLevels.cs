using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Verification;

/// <summary>Every option of an attention call in its ways of being used, as levels for a <see cref="CoveringArray"/>; level 0 is always "not used".</summary>
public static class OptionLevels
{
    private const int Scale = 0, Causal = 1, Window = 2, Softcap = 3, Alibi = 4, Sinks = 5, KeyLengths = 6, QueryLengths = 7, DepthFirst = 8,
        TailMask = 9, TailBias = 10;

    /// <summary>Names of the options, in the order of the levels.</summary>
    public static IReadOnlyList<string> Names { get; } =
        ["scale", "causal", "window", "softcap", "alibi", "sinks", "key-lengths", "query-lengths", "depth-first", "tail-mask", "tail-bias"];

    /// <summary>
    /// Levels of each option. Scale: positive, negative, 0; window: left, right, both; ALiBi slopes: of heads, of batch and
    /// heads; sinks: ordinary, huge; tail mask: short, longer than the keys; tail bias: for all batch rows, for each.
    /// </summary>
    public static IReadOnlyList<int> Counts { get; } = [4, 2, 4, 2, 3, 3, 2, 2, 2, 3, 3];

    /// <summary>Random options of these levels for a shape.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="level">A level for each of <see cref="Names"/>.</param>
    /// <param name="seed">The same seed draws the same options.</param>
    public static AttentionOptions Draw(AttentionShape shape, IReadOnlyList<int> level, int seed)
    {
        var random = new Random(seed);
        int queries = shape.Batch * shape.QueryLength;
        int tail = level[TailMask] == 2 ? shape.KeyLength + 3 : random.Next(1, 6);
        int biasTail = random.Next(1, 9);
        T[] Draw<T>(int count, Func<T> draw) => [.. Enumerable.Range(0, count).Select(_ => draw())];
        float Number() => (float)((random.NextDouble() * 4) - 2);
        return new AttentionOptions
        {
            Scale = level[Scale] switch { 1 => 0.3f, 2 => -0.7f, 3 => 0f, _ => null },
            Causal = level[Causal] == 1,
            WindowLeft = level[Window] is 1 or 3 ? random.Next(shape.KeyLength + 2) : -1,
            WindowRight = level[Window] is 2 or 3 ? random.Next(shape.KeyLength + 2) : -1,
            Softcap = level[Softcap] == 1 ? 1.5f : 0,
            AlibiSlopes = level[Alibi] > 0 ? Draw(shape.QueryHeads * (level[Alibi] == 2 ? shape.Batch : 1), Number) : null,
            Sinks = level[Sinks] > 0 ? Draw(shape.QueryHeads, () => level[Sinks] == 2 ? 50 * Number() : Number()) : null,
            KeyLengths = level[KeyLengths] == 1
                ? Draw(shape.Batch, () => random.Next(3) == 0 ? 0 : random.Next(shape.KeyLength + 1))
                : null,
            QueryLengths = level[QueryLengths] == 1 ? Draw(shape.Batch, () => random.Next(shape.QueryLength + 1)) : null,
            DfsStart = level[DepthFirst] == 1 ? Draw(queries, () => random.Next(6)) : null,
            DfsEnd = level[DepthFirst] == 1 ? Draw(shape.Batch * shape.KeyLength, () => random.Next(6)) : null,
            TailMask = level[TailMask] > 0 ? Draw(queries * tail, () => random.Next(3) > 0) : null,
            TailMaskLength = level[TailMask] > 0 ? tail : 0,
            TailBias = level[TailBias] > 0
                ? Draw(
                    (level[TailBias] == 2 ? queries : shape.QueryLength) * biasTail,
                    () => random.Next(5) == 0 ? float.NegativeInfinity : Number())
                : null,
            TailBiasLength = level[TailBias] > 0 ? biasTail : 0,
        };
    }
}

/// <summary>Few rows of levels in which every two levels of every two factors meet: how all options are tried together without trying all combinations.</summary>
public static class CoveringArray
{
    /// <summary>A level that is not chosen yet in a row that is being made.</summary>
    public const int Open = -1;

    /// <summary>A pairwise covering array, built greedily: always the same for the same levels.</summary>
    /// <param name="levels">How many levels each factor has.</param>
    public static IReadOnlyList<int[]> Pairs(params int[] levels) => Pairs(levels, _ => true);

    /// <summary>The same where some levels do not go together.</summary>
    /// <param name="levels">How many levels each factor has.</param>
    /// <param name="allowed">
    /// Whether a row, some of whose levels may still be <see cref="Open"/>, can be completed. Two levels that no allowed row
    /// has together do not meet; all others do.
    /// </param>
    public static IReadOnlyList<int[]> Pairs(int[] levels, Func<int[], bool> allowed)
    {
        var open = new SortedSet<(int, int, int, int)>(
            from first in Enumerable.Range(0, levels.Length)
            from second in Enumerable.Range(first + 1, levels.Length - first - 1)
            from a in Enumerable.Range(0, levels[first])
            from b in Enumerable.Range(0, levels[second])
            where allowed(With(With(Blank(levels), first, a), second, b))
            select (first, second, a, b));
        var rows = new List<int[]>();
        while (open.Count > 0)
        {
            (int first, int second, int a, int b) = open.Min;
            int[] row = With(With(Blank(levels), first, a), second, b);
            for (int factor = 0; factor < levels.Length; factor++)
            {
                if (row[factor] == Open)
                {
                    // Equal gains are broken in turn: a row that is almost free has other levels than the last one.
                    int turn = rows.Count + factor;
                    row[factor] = Enumerable.Range(0, levels[factor]).Select(i => (i + turn) % levels[factor])
                        .Where(level => allowed(With(row, factor, level))).MaxBy(level => Gain(open, row, factor, level));
                }
            }

            open.ExceptWith(PairsOf(row));
            rows.Add(row);
        }

        return rows;
    }

    private static int[] Blank(int[] levels) => [.. Enumerable.Repeat(Open, levels.Length)];

    private static int[] With(int[] row, int factor, int level)
    {
        int[] changed = [.. row];
        changed[factor] = level;
        return changed;
    }

    private static IEnumerable<(int, int, int, int)> PairsOf(int[] row) =>
        from first in Enumerable.Range(0, row.Length)
        from second in Enumerable.Range(first + 1, row.Length - first - 1)
        select (first, second, row[first], row[second]);

    private static int Gain(SortedSet<(int, int, int, int)> open, int[] row, int factor, int level) =>
        Enumerable.Range(0, row.Length).Count(other => other != factor && row[other] != Open && open.Contains(
            other < factor ? (other, factor, row[other], level) : (factor, other, level, row[other])));
}
