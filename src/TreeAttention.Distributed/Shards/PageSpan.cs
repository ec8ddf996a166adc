using System;

namespace TreeAttention.Distributed;

/// <summary>The keys of one page: <c>Count</c> keys of a run from index <c>Offset</c> on. A page never leaves its run.</summary>
public readonly record struct PageSpan(KeyRun Run, int Offset, int Count)
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
