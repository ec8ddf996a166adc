using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Verification;

/// <summary>Few rows of levels in which every two levels of every two factors meet: how all options are tried together without trying all combinations.</summary>
internal static class CoveringArray
{
    /// <summary>A level that is not chosen yet in a row that is being made.</summary>
    public const int Open = -1;

    private const int Candidates = 6; // of each row, the best of which is taken

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
            int[] begun = With(With(Blank(levels), first, a), second, b);
            int[] row = Enumerable.Range(0, Candidates)
                .Select(n => Complete(begun, n * levels.Length / Candidates, rows.Count, levels, allowed, open))
                .MaxBy(candidate => PairsOf(candidate).Count(open.Contains))!;
            open.ExceptWith(PairsOf(row));
            rows.Add(row);
        }

        return rows;
    }

    // Chooses the open levels one after the other, from one factor on: each so that most open pairs meet.
    private static int[] Complete(
        int[] begun, int start, int rows, int[] levels, Func<int[], bool> allowed, SortedSet<(int, int, int, int)> open)
    {
        int[] row = [.. begun];
        for (int n = 0; n < levels.Length; n++)
        {
            int factor = (start + n) % levels.Length;
            if (row[factor] == Open)
            {
                // Equal gains are broken in turn: a row that is almost free has other levels than the last one.
                int turn = rows + factor;
                row[factor] = Enumerable.Range(0, levels[factor]).Select(i => (i + turn) % levels[factor])
                    .Where(level => allowed(With(row, factor, level))).MaxBy(level => Gain(open, row, factor, level));
            }
        }

        return row;
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
