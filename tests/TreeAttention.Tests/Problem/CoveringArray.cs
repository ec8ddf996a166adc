using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Tests;

/// <summary>Few rows of levels in which every two levels of every two factors meet.</summary>
public static class CoveringArray
{
    /// <summary>A pairwise covering array, built greedily: always the same for the same levels.</summary>
    /// <param name="levels">How many levels each factor has.</param>
    public static IReadOnlyList<int[]> Pairs(params int[] levels)
    {
        var open = new HashSet<(int, int, int, int)>(
            from first in Enumerable.Range(0, levels.Length)
            from second in Enumerable.Range(first + 1, levels.Length - first - 1)
            from a in Enumerable.Range(0, levels[first])
            from b in Enumerable.Range(0, levels[second])
            select (first, second, a, b));
        var rows = new List<int[]>();
        while (open.Count > 0)
        {
            int[] row = [.. Enumerable.Repeat(-1, levels.Length)];
            (int first, int second, int a, int b) = open.Min();
            (row[first], row[second]) = (a, b);
            for (int factor = 0; factor < levels.Length; factor++)
            {
                if (row[factor] < 0)
                {
                    row[factor] = Enumerable.Range(0, levels[factor]).MaxBy(level => Gain(open, row, factor, level));
                }
            }

            open.ExceptWith(PairsOf(row));
            rows.Add(row);
        }

        return rows;
    }

    private static IEnumerable<(int, int, int, int)> PairsOf(int[] row) =>
        from first in Enumerable.Range(0, row.Length)
        from second in Enumerable.Range(first + 1, row.Length - first - 1)
        select (first, second, row[first], row[second]);

    private static int Gain(HashSet<(int, int, int, int)> open, int[] row, int factor, int level) =>
        Enumerable.Range(0, row.Length).Count(other => other != factor && row[other] >= 0 && open.Contains(
            other < factor ? (other, factor, row[other], level) : (factor, other, level, row[other])));
}
