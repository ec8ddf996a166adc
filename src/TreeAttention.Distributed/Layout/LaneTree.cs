using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Layout;

/// <summary>The one fixed order in which the reproducible layout folds: 256 lanes as the leaves of a binary tree.</summary>
/// <remarks>
/// A node is an aligned interval of 2^k lanes. A rank's lanes are a few such nodes, whatever the number of ranks; each rank
/// folds its nodes, the nodes travel, and every rank folds the rest: always the same tree, so always the same bits.
/// </remarks>
internal static class LaneTree
{
    /// <summary>Number of lanes; page c belongs to the lane whose 8 bits are those of c mod 256 reversed.</summary>
    /// <remarks>
    /// Reversed, because a rank owns neighbouring lanes: neighbouring pages then lie on different ranks, and ranks differ by
    /// a few pages at most however short the context is.
    /// </remarks>
    public const int Lanes = 256;

    /// <summary>Lane of the key at <paramref name="position"/> of its row.</summary>
    public static int LaneOf(int position) => LaneOfPage(position / PageSpan.Keys % Lanes);

    /// <summary>Lane of page <paramref name="page"/> &lt; <see cref="Lanes"/>.</summary>
    public static int LaneOfPage(int page) => Reverse(page);

    /// <summary>The first page of a lane; the others follow every <see cref="Lanes"/> pages.</summary>
    public static int FirstPageOf(int lane) => Reverse(lane);

    /// <summary>The rank that owns a page of 512 positions.</summary>
    public static int OwnerOf(int page, int ranks) => ((((Reverse(page % Lanes) + 1) * ranks) + Lanes - 1) / Lanes) - 1;

    /// <summary>The lanes of <paramref name="rank"/>, ascending.</summary>
    public static IEnumerable<int> LanesOf(int rank, int ranks)
    {
        int first = FirstLane(rank, ranks);
        return Enumerable.Range(first, FirstLane(rank + 1, ranks) - first);
    }

    /// <summary>The largest aligned intervals of lanes that together are the lanes of <paramref name="rank"/>, ascending.</summary>
    public static IReadOnlyList<LaneNode> NodesOf(int rank, int ranks)
    {
        var nodes = new List<LaneNode>();
        int end = FirstLane(rank + 1, ranks);
        for (int lane = FirstLane(rank, ranks); lane < end;)
        {
            int size = Lanes;
            while (lane % size != 0 || lane + size > end)
            {
                size /= 2;
            }

            nodes.Add(new LaneNode(lane, size));
            lane += size;
        }

        return nodes;
    }

    /// <summary>Finds where the pages of each lane lie in a plan.</summary>
    /// <param name="plan">A plan in the lanes layout: pages lane by lane, ascending inside a lane, alike in every batch row.</param>
    /// <param name="firstPage">[<see cref="Lanes"/> + 1] receives the first page of each lane, and the end.</param>
    /// <exception cref="ShapeMismatchException">The plan's pages are not those of lanes.</exception>
    public static void IndexPages(ShardPlan plan, Span<int> firstPage)
    {
        if (plan.FirstPages is { } known)
        {
            known.CopyTo(firstPage);
            return;
        }

        int page = 0;
        for (int lane = 0; lane < Lanes; lane++)
        {
            firstPage[lane] = page;
            while (page < plan.PagesPerBatch && IsWholeIn(plan.Pages[page].Span, lane))
            {
                page++;
            }
        }

        firstPage[Lanes] = page;
        if (page < plan.PagesPerBatch)
        {
            throw new ShapeMismatchException(
                $"Page {page} of the shard starts at position {plan.Pages[page].Span.FirstPosition}: not the lane order. Use {Setting.ShardLanes} on every rank.");
        }
    }

    // A page without keys, which only other batch rows have, still has its place.
    private static bool IsWholeIn(PageSpan span, int lane) =>
        LaneOf(span.FirstPosition) == lane
        && (span.Count == 0 || (span.IsContiguous && span.FirstPosition / PageSpan.Keys == span.LastPosition / PageSpan.Keys));

    private static int Reverse(int eightBits)
    {
        int reversed = 0;
        for (int bit = 1; bit < Lanes; bit *= 2)
        {
            reversed = (reversed * 2) + ((eightBits & bit) != 0 ? 1 : 0);
        }

        return reversed;
    }

    private static int FirstLane(int rank, int ranks) => (int)((long)Lanes * rank / ranks);
}

/// <summary>An aligned interval of lanes: <c>Size</c> is a power of two and divides <c>First</c>.</summary>
internal readonly record struct LaneNode(int First, int Size);
