using System;
using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace TreeAttention.Distributed;

/// <summary>Turns a row of one element type into a row of the storage type, and says how large its numbers are.</summary>
/// <remarks>Every element is rounded once, to nearest, ties to even, float64 to a 16-bit type included.</remarks>
internal sealed class RowStorage(ElementType source, ElementType storage, int dim)
{
    private readonly float[] _single = new float[dim];

    /// <summary>Stores the row and returns its numbers as they were stored; valid until the next call.</summary>
    public ReadOnlySpan<float> Store(ReadOnlySpan<byte> row, Span<byte> into)
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

    // Rounding to single to nearest and then again to 16 bits could err by more than half a unit. Rounding to odd first keeps
    // what the second rounding has to know: whether anything was dropped, and on which side of a tie.
    private void Widen(ReadOnlySpan<byte> row)
    {
        ElementConversion.ToFloat(row, source, _single);
        if (source != ElementType.Float64)
        {
            return;
        }

        ReadOnlySpan<double> exact = MemoryMarshal.Cast<byte, double>(row);
        for (int i = 0; i < exact.Length; i++)
        {
            if (_single[i] != exact[i] && float.IsFinite(_single[i]))
            {
                uint bits = BitConverter.SingleToUInt32Bits(_single[i]);
                bits -= Math.Abs((double)_single[i]) > Math.Abs(exact[i]) ? 1u : 0u;
                _single[i] = BitConverter.UInt32BitsToSingle(bits | 1);
            }
        }
    }
}
