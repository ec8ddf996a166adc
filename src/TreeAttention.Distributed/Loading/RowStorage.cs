using System;
using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace TreeAttention.Distributed;

/// <summary>Turns a row of one element type into a row of the storage type, and says how large its numbers are.</summary>
/// <remarks>
/// Every element is rounded once, to nearest, ties to even, float64 to a 16-bit type and quotients by a scale included. What
/// f8e4m3 cannot hold, an infinity or a number that would round above 448, is stored as NaN: whoever stores looks for it.
/// </remarks>
internal sealed class RowStorage(ElementType source, ElementType storage, int dim)
{
    private readonly float[] _single = new float[dim];

    /// <summary>Stores the row and returns its numbers as they were stored, not multiplied by the scale; valid until the next call.</summary>
    /// <param name="row">Elements of the source type. f8e4m3 elements that stay f8e4m3 are taken as they are.</param>
    /// <param name="into">Receives elements of the storage type.</param>
    /// <param name="scale">What the stored elements of f8e4m3 are to be multiplied by.</param>
    public ReadOnlySpan<float> Store(ReadOnlySpan<byte> row, Span<byte> into, float scale = 1f)
    {
        if (storage == ElementType.Float32)
        {
            ElementConversion.ToFloat(row, source, MemoryMarshal.Cast<byte, float>(into));
            return MemoryMarshal.Cast<byte, float>(into);
        }

        if (source == storage)
        {
            row.CopyTo(into);
        }
        else if (storage == ElementType.Float8E4M3)
        {
            Divide(row, scale, into);
        }
        else
        {
            Widen(row);
            ElementConversion.FromFloat(_single, storage, into);
        }

        ElementConversion.ToFloat(into, storage, _single);
        return _single;
    }

    /// <summary>Σ x² in double: finite exactly when every element is.</summary>
    public static double SumOfSquares(ReadOnlySpan<float> row)
    {
        int width = Vector<float>.Count;
        Vector<double> low = Vector<double>.Zero;
        Vector<double> high = Vector<double>.Zero;
        int i = 0;
        for (; i <= row.Length - width; i += width)
        {
            Vector.Widen(new Vector<float>(row[i..]), out Vector<double> first, out Vector<double> second);
            low += first * first;
            high += second * second;
        }

        double sum = Vector.Sum(low + high);
        for (; i < row.Length; i++)
        {
            sum += (double)row[i] * row[i];
        }

        return sum;
    }

    /// <summary>Largest magnitude; NaN when there is one.</summary>
    public static float LargestMagnitude(ReadOnlySpan<float> row) => MathF.Abs(TensorPrimitives.MaxMagnitude(row));

    /// <summary>The nearest single, or the odd one of two neighbours.</summary>
    /// <remarks>
    /// Rounding to single to nearest and then again to fewer bits could err by more than half a unit. Rounding to odd first keeps
    /// what the second rounding has to know: whether anything was dropped, and on which side of a tie.
    /// </remarks>
    public static float RoundToOdd(double exact)
    {
        float nearest = (float)exact;
        if (nearest == exact || !float.IsFinite(nearest))
        {
            return nearest;
        }

        uint bits = BitConverter.SingleToUInt32Bits(nearest);
        bits -= Math.Abs((double)nearest) > Math.Abs(exact) ? 1u : 0u;
        return BitConverter.UInt32BitsToSingle(bits | 1);
    }

    private void Divide(ReadOnlySpan<byte> row, float scale, Span<byte> into)
    {
        if (source != ElementType.Float64)
        {
            ElementConversion.ToFloat(row, source, _single);
            ElementConversion.ToFloat8E4M3(_single, scale, into);
            return;
        }

        ReadOnlySpan<double> exact = MemoryMarshal.Cast<byte, double>(row);
        for (int i = 0; i < exact.Length; i++)
        {
            into[i] = Float8E4M3.FromQuotient(exact[i], scale);
        }
    }

    private void Widen(ReadOnlySpan<byte> row)
    {
        if (source != ElementType.Float64)
        {
            ElementConversion.ToFloat(row, source, _single);
            return;
        }

        ReadOnlySpan<double> exact = MemoryMarshal.Cast<byte, double>(row);
        for (int i = 0; i < exact.Length; i++)
        {
            _single[i] = RoundToOdd(exact[i]);
        }
    }
}
