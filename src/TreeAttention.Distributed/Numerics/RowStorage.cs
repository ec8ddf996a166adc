using System;
using System.Globalization;
using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Numerics;

/// <summary>Turns a row of one element type into a row of the storage type, and says how large its numbers are.</summary>
/// <remarks>
/// Every element is rounded once, to nearest, ties to even, float64 to a 16-bit type and quotients by a scale included. What
/// a type with scales cannot hold, an infinity or a number that would round above its largest, is stored as NaN: whoever stores looks for it.
/// </remarks>
internal sealed class RowStorage(ElementType source, ElementType storage, int dim)
{
    private readonly float[] _single = new float[dim];
    private readonly StorageType _type = StorageType.Of(storage);

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
        else if (_type.HasScales)
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
        if (source == ElementType.Float64)
        {
            _type.DivideExact!(MemoryMarshal.Cast<byte, double>(row), scale, into);
            return;
        }

        ElementConversion.ToFloat(row, source, _single);
        _type.Store(_single, scale, into);
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

/// <summary>Which numbers a storage type can hold, and the faults of those that it cannot.</summary>
internal static class StorageRange
{
    private static readonly CultureInfo _invariant = CultureInfo.InvariantCulture;

    /// <summary>The fault of storing this element, or null when it may be stored.</summary>
    /// <param name="tensor">What messages call the tensor.</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="position">Position in the whole sequence.</param>
    /// <param name="head">Head.</param>
    /// <param name="dim">Dimension.</param>
    /// <param name="element">The element, exactly.</param>
    /// <param name="storage">What it shall be stored as.</param>
    /// <param name="policy">Whether NaN and infinities may be stored. f8e4m3 has no infinity, so none may there.</param>
    /// <param name="scale">What the stored element is to be multiplied by.</param>
    public static FaultException? FaultOf(
        string tensor, int batch, int position, int head, int dim, double element, ElementType storage, NonFinitePolicy policy,
        float scale = 1f)
    {
        string place = FormattableString.Invariant($"{tensor}[batch {batch}, position {position}, head {head}, dim {dim}]");
        if (!double.IsFinite(element))
        {
            string what = double.IsNaN(element) ? StorageType.Of(storage).NaNName : element > 0 ? "+inf" : "-inf";
            bool hasNone = !StorageType.Of(storage).HasInfinity && double.IsInfinity(element);
            return policy == NonFinitePolicy.Propagate && !hasNone ? null : new FaultException(
                FaultCode.BadInput,
                policy == NonFinitePolicy.Error
                    ? $"{place} is {what}: attention over it is not a number. Repair the input, or let it through with {Setting.PropagateNonFinite}."
                    : $"{place} is {what}, and {storage.ShortName()} has no infinity. Repair the input, or store keys and values with {Setting.StorageBFloat16}.");
        }

        return !Overflows(element, storage, scale) ? null : new FaultException(
            FaultCode.BadInput, $"{place} {WhyTooLarge(element, storage, scale, tensor == "value" ? Setting.ValueScale : Setting.KeyScale)}");
    }

    internal static bool Overflows(double element, ElementType storage, float scale) => StorageType.Of(storage).Overflows(element, scale);

    private static string WhyTooLarge(double element, ElementType storage, float scale, Setting scaleOption)
    {
        var type = StorageType.Of(storage);
        string limit = string.Create(
            _invariant,
            $"is {element:G9}, too large for {type.Name}{(type.HasScales ? string.Create(_invariant, $" with a scale of {scale:G9}") : "")}, which ends at {type.Largest * (type.HasScales ? scale : 1.0):G9}. ");
        string wayOut = Overflows(element, ElementType.Float32, 1f) ? "Scale the tensor down: f32 is the widest storage type."
            : type.HasScales ? $"Give a larger {scaleOption}, or store keys and values with {Setting.StorageBFloat16}."
            : $"Store keys and values with {Setting.StorageFloat32}.";
        return limit + wayOut;
    }
}
