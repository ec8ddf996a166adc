using System;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Kernels;

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

/// <summary>A copy of a page in which keys with a NaN or ∞ are zeros, so that rows which do not see them are computed as ever.</summary>
internal sealed unsafe class CleanPage<TElement>(MemoryAccount account) : IDisposable
    where TElement : struct, IStoredElement
{
    private readonly Scratch _copy = new(account);
    private readonly bool[] _isBad = new bool[PageSpan.Keys];
    private readonly double[] _squares = new double[PageSpan.Keys];
    private readonly double[] _largest = new double[PageSpan.Keys];
    private readonly float[] _row = new float[AttentionShape.MaxHeadDim + Vector256<float>.Count];

    /// <summary>How large the numbers of the other keys are.</summary>
    internal PageLimits Limits { get; private set; }

    /// <summary>Finds the keys that are not finite.</summary>
    internal void Examine(PageView page, RowTile tile)
    {
        AttentionShape shape = tile.Problem.Shape;
        double norm = 0;
        double largest = 0;
        for (int key = 0; key < page.Span.Count; key++)
        {
            (double squares, _) = Measure(page.Keys + (key * page.KeyStride), shape.HeadDim);
            (double valueSquares, double most) = Measure(page.Values + (key * page.ValueStride), shape.ValueDim);
            _isBad[key] = !double.IsFinite(squares + valueSquares);
            (_squares[key], _largest[key]) = (squares, most);
            if (!_isBad[key])
            {
                norm = Math.Max(norm, squares);
                largest = Math.Max(largest, most);
            }
        }

        Limits = new PageLimits((float)(Math.Sqrt(norm) * tile.KeyScale), (float)(largest * tile.ValueScale));
    }

    /// <summary>How large the keys, values and biases are that a row sees, never more than the page's limits say; NaN when one is not finite.</summary>
    internal (double KeyNorm, double Value, double Bias) SeenBy(RowTile tile, PageView page, int row)
    {
        KeyInterval seen = page.Indices[row];
        AttentionMask mask = tile.Problem.Mask;
        (double squares, double largest, double bias) = (0, 0, 0);
        for (int key = seen.First; key < seen.End; key++)
        {
            if (mask.HasKeyRules && !mask.KeepsInside(tile.Batch, tile.Index[row], page.Positions[key]))
            {
                continue;
            }

            if (_isBad[key])
            {
                return (double.NaN, double.NaN, double.NaN);
            }

            squares = Math.Max(squares, _squares[key]);
            largest = Math.Max(largest, _largest[key]);
            if (mask.HasBias)
            {
                int position = page.Positions[key];
                bias = Math.Max(bias, mask.LargestBias(tile.Batch, tile.Head[row], tile.Index[row], position, position));
            }
        }

        return (Math.Sqrt(squares) * tile.KeyScale, largest * tile.ValueScale, bias);
    }

    /// <summary>The row sees a key that is not finite.</summary>
    internal bool IsSeen(RowTile tile, PageView page, int row)
    {
        KeyInterval seen = page.Indices[row];
        AttentionMask mask = tile.Problem.Mask;
        for (int key = seen.First; key < seen.End; key++)
        {
            if (_isBad[key] && (!mask.HasKeyRules || mask.KeepsInside(tile.Batch, tile.Index[row], page.Positions[key])))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>Copies the page without those keys and puts the copy in its place.</summary>
    internal void Enter(PageView page)
    {
        long keyBytes = page.Span.Count * page.KeyStride;
        long valueBytes = page.Span.Count * page.ValueStride;
        byte* keys = _copy.Bytes(keyBytes + valueBytes);
        byte* values = keys + keyBytes;
        Buffer.MemoryCopy(page.Keys, keys, keyBytes, keyBytes);
        Buffer.MemoryCopy(page.Values, values, valueBytes, valueBytes);
        for (int key = 0; key < page.Span.Count; key++)
        {
            if (_isBad[key])
            {
                new Span<byte>(keys + (key * page.KeyStride), (int)page.KeyStride).Clear();
                new Span<byte>(values + (key * page.ValueStride), (int)page.ValueStride).Clear();
            }
        }

        page.Keys = keys;
        page.Values = values;
    }

    public void Dispose() => _copy.Dispose();

    // Loads of eight may pass the end of a row; what they find there is cut off.
    private (double Squares, double Largest) Measure(byte* source, int count)
    {
        for (int i = 0; i < count; i += Vector256<float>.Count)
        {
            TElement.LoadExact(source + (i * TElement.Size)).StoreUnsafe(ref _row[i]);
        }

        ReadOnlySpan<float> row = _row.AsSpan(0, count);
        return (RowStorage.SumOfSquares(row), RowStorage.LargestMagnitude(row));
    }
}
