using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>One page of one KV head as a kernel reads it: where its keys and values lie, and which of them each row sees.</summary>
internal sealed unsafe class PageView
{
    private readonly int[] _positions = new int[PageSpan.Keys];
    private bool _hasPositions;

    /// <summary>First key.</summary>
    internal byte* Keys { get; set; }

    /// <summary>First value.</summary>
    internal byte* Values { get; set; }

    /// <summary>Bytes from one key to the next.</summary>
    internal nint KeyStride { get; set; }

    /// <summary>Bytes from one value to the next.</summary>
    internal nint ValueStride { get; set; }

    /// <summary>The keys that will be read after this page's; for prefetching alone, so any address will do.</summary>
    internal byte* NextKeys { get; set; }

    /// <summary>The values that will be read after this page's; for prefetching alone.</summary>
    internal byte* NextValues { get; set; }

    /// <summary>Keys of the page.</summary>
    internal PageSpan Span { get; private set; }

    /// <summary>[rows] the indices that each row sees: <c>First &lt;= index &lt; End</c>.</summary>
    internal KeyInterval[] Indices { get; private set; } = [];

    /// <summary>Indices that any row sees.</summary>
    internal KeyInterval Hull { get; private set; }

    /// <summary>Positions of the keys, ascending.</summary>
    internal ReadOnlySpan<int> Positions
    {
        get
        {
            if (!_hasPositions)
            {
                for (int i = 0; i < Span.Count; i++)
                {
                    _positions[i] = Span.PositionAt(i);
                }

                _hasPositions = true;
            }

            return _positions.AsSpan(0, Span.Count);
        }
    }

    /// <summary>Makes room for so many rows.</summary>
    internal void Reserve(int rows) => Indices = new KeyInterval[rows];

    /// <summary>Takes a page; false when no row of the tile sees a key of it.</summary>
    internal bool Take(PageSpan span, RowTile tile)
    {
        (int first, int last) = (span.FirstPosition, span.LastPosition);
        if (tile.Hull.IsEmpty || tile.Hull.First > last || tile.Hull.End <= first)
        {
            return false;
        }

        Span = span;
        _hasPositions = false;
        AttentionMask mask = tile.Problem.Mask;
        for (int row = 0; row < tile.Count; row++)
        {
            KeyInterval visible = tile.Visible[row];
            if (mask.DfsPeaks is not null)
            {
                visible = mask.WithoutHiddenBlocks(
                    tile.Batch, tile.Index[row], new KeyInterval(Math.Max(first, visible.First), Math.Min(last + 1, visible.End)));
            }

            Indices[row] = visible.First <= first && visible.End > last ? new KeyInterval(0, span.Count)
                : visible.IsEmpty ? default
                : span.IndicesIn(visible);
        }

        return FindHull(tile.Count);
    }

    /// <summary>Finds <see cref="Hull"/> again after rows were hidden; false when nothing is left.</summary>
    internal bool FindHull(int rows)
    {
        int low = int.MaxValue;
        int high = 0;
        for (int row = 0; row < rows; row++)
        {
            if (!Indices[row].IsEmpty)
            {
                low = Math.Min(low, Indices[row].First);
                high = Math.Max(high, Indices[row].End);
            }
        }

        Hull = new KeyInterval(low, high);
        return !Hull.IsEmpty;
    }
}
