using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Layout;

/// <summary>The lanes of calls whose bits are those of each sequence alone: pages count from a sequence's own first key.</summary>
/// <remarks>
/// A row's pages are folded in a tree whose leaves are lanes, and a fold is commutative to the bit: exchanging halves of the tree changes
/// nothing. So packed sequences may begin on different lanes, which deals them to the ranks: page c of a sequence that begins at place o
/// lies on the lane of c xor o.
/// </remarks>
internal static class LanePages
{
    /// <summary>The pages of one rank, lane by lane; a batch row that is shorter than another one has pages without keys.</summary>
    /// <param name="rows">[batch] the keys of each row, as <see cref="PresentTokens.Keys"/>.</param>
    /// <param name="rank">0 to <paramref name="ranks"/> - 1.</param>
    /// <param name="ranks">Ranks that share the keys.</param>
    /// <param name="firstPages">[<see cref="LaneTree.Lanes"/> + 1] receives the first page of each lane, and the end.</param>
    /// <returns>[batch][pages]</returns>
    internal static PageSpan[][] Of(KeyInterval[][] rows, int rank, int ranks, int[] firstPages)
    {
        var lanes = new Dictionary<int, List<(int Sequence, int Page)>>();
        (int sequences, int place) = (rows.Length == 0 ? 0 : rows[0].Length, 0);
        for (int sequence = 0; sequence < sequences; sequence++)
        {
            int pages = rows.Max(row => PageSpan.PagesFor(row[sequence].End - row[sequence].First));
            for (int page = 0; page < pages; page++)
            {
                int lane = LaneTree.LaneOfPage((page % LaneTree.Lanes) ^ (place % LaneTree.Lanes));
                (lanes.TryGetValue(lane, out List<(int, int)>? list) ? list : lanes[lane] = []).Add((sequence, page));
            }

            place += pages;
        }

        var mine = new List<(int Sequence, int Page)>();
        int first = LaneTree.LanesOf(rank, ranks).DefaultIfEmpty(0).First();
        int end = first + LaneTree.LanesOf(rank, ranks).Count();
        for (int lane = 0; lane < LaneTree.Lanes; lane++)
        {
            firstPages[lane] = mine.Count;
            mine.AddRange(lane >= first && lane < end ? lanes.GetValueOrDefault(lane) ?? [] : []);
        }

        firstPages[LaneTree.Lanes] = mine.Count;
        return [.. rows.Select(row => mine.Select(page => SpanOf(row[page.Sequence], page.Page)).ToArray())];
    }

    private static PageSpan SpanOf(KeyInterval keys, int page)
    {
        int first = (int)Math.Min(keys.First + ((long)page * PageSpan.Keys), keys.End);
        int count = Math.Min(PageSpan.Keys, keys.End - first);
        return new PageSpan(KeyRun.Contiguous(first, count), 0, count);
    }
}
