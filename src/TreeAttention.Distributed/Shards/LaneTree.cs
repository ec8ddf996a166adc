using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>The one fixed order in which the reproducible layout folds: 256 lanes as the leaves of a binary tree.</summary>
/// <remarks>
/// A node is an aligned interval of 2^k lanes. A rank's lanes are a few such nodes, whatever the number of ranks; each rank
/// folds its nodes, the nodes travel, and every rank folds the rest: always the same tree, so always the same bits.
/// </remarks>
public static class LaneTree
{
    /// <summary>Number of lanes; page c belongs to the lane whose 8 bits are those of c mod 256 reversed.</summary>
    /// <remarks>
    /// Reversed, because a rank owns neighbouring lanes: neighbouring pages then lie on different ranks, and ranks differ by
    /// a few pages at most however short the context is.
    /// </remarks>
    public const int Lanes = 256;

    /// <summary>Lane of the key at <paramref name="position"/>.</summary>
    public static int LaneOf(int position) => Reverse(position / PageSpan.Keys % Lanes);

    /// <summary>The first page of a lane; the others follow every <see cref="Lanes"/> pages.</summary>
    public static int FirstPageOf(int lane) => Reverse(lane);

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
public readonly record struct LaneNode(int First, int Size);
