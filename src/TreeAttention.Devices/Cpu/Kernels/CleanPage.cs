using System;
using System.Runtime.Intrinsics;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>A copy of a page in which keys with a NaN or ∞ are zeros, so that rows which do not see them are computed as ever.</summary>
internal sealed unsafe class CleanPage<TElement>(MemoryAccount account) : IDisposable
    where TElement : struct, IStoredElement
{
    private readonly Scratch _copy = new(account);
    private readonly bool[] _isBad = new bool[PageSpan.Keys];

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
            if (!_isBad[key])
            {
                norm = Math.Max(norm, squares);
                largest = Math.Max(largest, most);
            }
        }

        Limits = new PageLimits((float)(Math.Sqrt(norm) * tile.KeyScale), (float)(largest * tile.ValueScale));
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

    private static (double Squares, double Largest) Measure(byte* source, int count)
    {
        double squares = 0;
        double largest = 0;
        for (int i = 0; i < count; i += Vector256<float>.Count)
        {
            Vector256<float> values = TElement.LoadExact(source + (i * TElement.Size));
            for (int n = 0; n < Math.Min(Vector256<float>.Count, count - i); n++)
            {
                double value = values[n];
                squares += value * value;
                largest = Math.Max(largest, Math.Abs(value));
            }
        }

        return (squares, largest);
    }
}
