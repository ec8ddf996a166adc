using System;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Layout;

/// <summary>Keys of one rank in ascending position: blocks of <c>Block</c> neighbours, one block every <c>Stride</c> positions.</summary>
/// <remarks>
/// The whole position arithmetic. Contiguous keys are one block; striped keys are blocks of one. Positions ascend with the
/// index (Stride &gt;= Block), so an interval of positions is always an interval of indices.
/// </remarks>
/// <param name="First">Position of the first key.</param>
/// <param name="Count">Number of keys.</param>
/// <param name="Block">Neighbouring keys in a block, at least 1.</param>
/// <param name="Stride">Positions from the start of one block to the next, at least <paramref name="Block"/>.</param>
internal readonly record struct KeyRun(int First, int Count, int Block, int Stride)
{
    /// <summary>Keys with neighbouring positions.</summary>
    public static KeyRun Contiguous(int first, int count) => new(first, count, Math.Max(1, count), Math.Max(1, count));

    /// <summary>Position of the key at <paramref name="index"/>.</summary>
    public int PositionAt(int index) => First + (index / Block * Stride) + (index % Block);

    /// <summary>How many of the keys have a position below <paramref name="position"/>.</summary>
    public int CountBelow(int position)
    {
        if (position <= First)
        {
            return 0;
        }

        int distance = position - First;
        long below = ((long)(distance / Stride) * Block) + Math.Min(Block, distance % Stride);
        return (int)Math.Min(Count, below);
    }
}

/// <summary>The keys of one page: <c>Count</c> keys of a run from index <c>Offset</c> on. A page never leaves its run.</summary>
internal readonly record struct PageSpan(KeyRun Run, int Offset, int Count)
{
    /// <summary>Most keys of a page.</summary>
    public const int Keys = 512;

    /// <summary>Pages that a row of so many keys takes.</summary>
    public static int PagesFor(int length) => (int)(((long)length + Keys - 1) / Keys);

    /// <summary>Position of the page's first key.</summary>
    public int FirstPosition => Run.PositionAt(Offset);

    /// <summary>Position of the page's last key.</summary>
    public int LastPosition => Run.PositionAt(Offset + Count - 1);

    /// <summary>The page's keys have neighbouring positions.</summary>
    public bool IsContiguous => LastPosition - FirstPosition == Count - 1;

    /// <summary>Position of the page's key at <paramref name="index"/>.</summary>
    public int PositionAt(int index) => Run.PositionAt(Offset + index);

    /// <summary>The indices of the page whose positions lie in the interval: <c>First &lt;= index &lt; End</c>.</summary>
    public KeyInterval IndicesIn(KeyInterval positions)
    {
        int first = Math.Clamp(Run.CountBelow(positions.First) - Offset, 0, Count);
        int end = Math.Clamp(Run.CountBelow(positions.End) - Offset, 0, Count);
        return new KeyInterval(first, end);
    }
}

/// <summary>Where one page of a batch row lies inside a shard's contents.</summary>
/// <remarks>
/// Keys are [kv_head][capacity][head_dim] from <paramref name="KeyOffset"/> on, values [kv_head][capacity][value_dim] from
/// <paramref name="ValueOffset"/> on; the first <c>Span.Count</c> of each head are filled. A loaded shard's pages are full.
/// </remarks>
/// <param name="Batch">The batch row.</param>
/// <param name="Span">The page's keys and their global positions; without keys where only other batch rows have this page.</param>
/// <param name="KeyOffset">First key element, counted from the start of the contents.</param>
/// <param name="ValueOffset">First value element; equal to <paramref name="KeyOffset"/> when values are a part of the keys.</param>
/// <param name="Capacity">Keys that each head has room for: the distance of the heads, in keys.</param>
/// <param name="Slot">Row of the page in the shard's limits.</param>
internal readonly record struct KeyPage(int Batch, PageSpan Span, long KeyOffset, long ValueOffset, int Capacity, int Slot);
