using System;
using System.Buffers.Binary;
using System.Numerics;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;

namespace TreeAttention.Distributed.Numerics;

/// <summary>Converts rows of elements, as they lie in memory, to single precision and back.</summary>
/// <remarks>
/// Widening is exact. Narrowing rounds to nearest, ties to even; what is too large becomes infinite, except in
/// <see cref="ElementType.Float8E4M3"/>, which has no infinity: there it saturates at ±448, infinities included, as the
/// satfinite conversion of GPUs does. NaN stays NaN everywhere. The bytes need not be aligned.
/// </remarks>
public static class ElementConversion
{
    /// <summary>Converts floating-point elements to single precision.</summary>
    /// <param name="source">Elements of <paramref name="type"/>, as many as <paramref name="destination"/> holds.</param>
    /// <param name="type">A floating-point type.</param>
    /// <param name="destination">Receives one float for each element.</param>
    /// <exception cref="ArgumentException">The lengths differ, or the type is not a floating-point type.</exception>
    public static void ToFloat(ReadOnlySpan<byte> source, ElementType type, Span<float> destination)
    {
        RequireSameCount(source.Length, type, destination.Length);
        switch (type)
        {
            case ElementType.Float32:
                source.CopyTo(MemoryMarshal.AsBytes(destination));
                break;
            case ElementType.Float16:
                TensorPrimitives.ConvertToSingle(MemoryMarshal.Cast<byte, Half>(source), destination);
                break;
            case ElementType.BFloat16:
                WidenBFloat16(MemoryMarshal.Cast<byte, ushort>(source), MemoryMarshal.Cast<float, uint>(destination));
                break;
            case ElementType.Float64:
                TensorPrimitives.ConvertTruncating(MemoryMarshal.Cast<byte, double>(source), destination);
                break;
            case ElementType.Float8E4M3:
                for (int i = 0; i < source.Length; i++)
                {
                    destination[i] = Float8E4M3.ToSingle(source[i]);
                }

                break;
            default:
                throw NotFloatingPoint(type);
        }
    }

    /// <summary>Converts single precision to another floating-point type.</summary>
    /// <param name="source">As many floats as <paramref name="destination"/> holds elements.</param>
    /// <param name="type">A floating-point type.</param>
    /// <param name="destination">Receives one element of <paramref name="type"/> for each float.</param>
    /// <exception cref="ArgumentException">The lengths differ, or the type is not a floating-point type.</exception>
    public static void FromFloat(ReadOnlySpan<float> source, ElementType type, Span<byte> destination)
    {
        RequireSameCount(destination.Length, type, source.Length);
        switch (type)
        {
            case ElementType.Float32:
                MemoryMarshal.AsBytes(source).CopyTo(destination);
                break;
            case ElementType.Float16:
                TensorPrimitives.ConvertToHalf(source, MemoryMarshal.Cast<byte, Half>(destination));
                break;
            case ElementType.BFloat16:
                NarrowToBFloat16(MemoryMarshal.Cast<float, uint>(source), MemoryMarshal.Cast<byte, ushort>(destination));
                break;
            case ElementType.Float64:
                TensorPrimitives.ConvertTruncating(source, MemoryMarshal.Cast<byte, double>(destination));
                break;
            case ElementType.Float8E4M3:
                for (int i = 0; i < source.Length; i++)
                {
                    destination[i] = Float8E4M3.FromSingle(source[i]);
                }

                break;
            default:
                throw NotFloatingPoint(type);
        }
    }

    /// <summary>Converts single precision to f8e4m3 elements that are to be multiplied by a scale.</summary>
    /// <remarks>Each is the element nearest to number / scale, rounded once. What f8e4m3 cannot hold becomes NaN.</remarks>
    /// <param name="source">As many floats as <paramref name="destination"/> holds elements.</param>
    /// <param name="scale">What the elements are to be multiplied by.</param>
    /// <param name="destination">Receives one element for each float.</param>
    /// <exception cref="ArgumentException">The lengths differ.</exception>
    public static void ToFloat8E4M3(ReadOnlySpan<float> source, float scale, Span<byte> destination)
    {
        RequireSameCount(destination.Length, ElementType.Float8E4M3, source.Length);
        for (int i = 0; i < source.Length; i++)
        {
            destination[i] = Float8E4M3.FromQuotient(source[i], scale);
        }
    }

    /// <summary>The value of one floating-point element, exactly.</summary>
    /// <param name="element">Begins with the bytes of the element; what follows is not looked at.</param>
    /// <param name="type">A floating-point type.</param>
    /// <exception cref="ArgumentException">The type is not a floating-point type.</exception>
    public static double ToDouble(ReadOnlySpan<byte> element, ElementType type) => type switch
    {
        ElementType.Float64 => BinaryPrimitives.ReadDoubleLittleEndian(element),
        ElementType.Float32 => BinaryPrimitives.ReadSingleLittleEndian(element),
        ElementType.Float16 => (double)BinaryPrimitives.ReadHalfLittleEndian(element),
        ElementType.BFloat16 => BitConverter.UInt32BitsToSingle((uint)BinaryPrimitives.ReadUInt16LittleEndian(element) << 16),
        ElementType.Float8E4M3 => Float8E4M3.ToSingle(element[0]),
        _ => throw NotFloatingPoint(type),
    };

    private static void WidenBFloat16(ReadOnlySpan<ushort> source, Span<uint> destination)
    {
        int i = 0;
        for (; i <= source.Length - Vector<ushort>.Count; i += Vector<ushort>.Count)
        {
            Vector.Widen(new Vector<ushort>(source[i..]), out Vector<uint> low, out Vector<uint> high);
            (low << 16).CopyTo(destination[i..]);
            (high << 16).CopyTo(destination[(i + Vector<uint>.Count)..]);
        }

        for (; i < source.Length; i++)
        {
            destination[i] = (uint)source[i] << 16;
        }
    }

    private static void NarrowToBFloat16(ReadOnlySpan<uint> source, Span<ushort> destination)
    {
        int i = 0;
        for (; i <= source.Length - Vector<ushort>.Count; i += Vector<ushort>.Count)
        {
            Vector<uint> low = RoundToBFloat16(new Vector<uint>(source[i..]));
            Vector<uint> high = RoundToBFloat16(new Vector<uint>(source[(i + Vector<uint>.Count)..]));
            Vector.Narrow(low, high).CopyTo(destination[i..]);
        }

        for (; i < source.Length; i++)
        {
            destination[i] = (ushort)RoundToBFloat16(new Vector<uint>(source[i]))[0];
        }
    }

    // Adding half of the dropped range, less one when the kept part is even, carries exactly when nearest-even rounds up.
    // A NaN would be carried into infinity or lose its only set bits, so it is made quiet instead.
    private static Vector<uint> RoundToBFloat16(Vector<uint> bits)
    {
        Vector<uint> kept = bits >>> 16;
        Vector<uint> rounded = (bits + new Vector<uint>(0x7FFF) + (kept & Vector<uint>.One)) >>> 16;
        var isNaN = Vector.GreaterThan(bits & new Vector<uint>(0x7FFFFFFF), new Vector<uint>(0x7F800000));
        return Vector.ConditionalSelect(isNaN, kept | new Vector<uint>(0x40), rounded);
    }

    /// <summary>Throws unless two regions have the same number of elements.</summary>
    /// <exception cref="ArgumentException">They have not.</exception>
    public static void RequireSameCount(Region from, Region to)
    {
        if (from.Count != to.Count)
        {
            throw new ArgumentException($"{from.Count} elements of {from.Type.ShortName()} are not {to.Count} of {to.Type.ShortName()}.", nameof(to));
        }
    }

    private static void RequireSameCount(int bytes, ElementType type, int floats)
    {
        if (bytes != (long)floats * type.SizeInBytes())
        {
            throw new ArgumentException(
                $"{bytes} bytes of {type.ShortName()} and {floats} floats were given: both must hold the same number of elements.");
        }
    }

    private static ArgumentException NotFloatingPoint(ElementType type) =>
        new($"{type.ShortName()} is not a floating-point type.", nameof(type));
}

/// <summary>The 8-bit float of OCP's E4M3: sign, 4 bits of exponent (bias 7), 3 of fraction; ±448 at most, no infinity.</summary>
internal static class Float8E4M3
{
    /// <summary>The largest number.</summary>
    public const float Largest = 448;

    private const byte SignBit = 0x80;
    private const byte NaN = 0x7F;
    private const byte LargestEncoding = 0x7E;
    private const float SmallestNormal = 1f / 64;
    private const float SmallestSubnormal = 1f / 512;
    private const int DroppedBits = 20;
    private const uint ExponentShift = (127 - 7) << 3;

    private static readonly float[] _values = AllValues();

    /// <summary>The value of an encoding, exactly.</summary>
    public static float ToSingle(byte encoded) => _values[encoded];

    /// <summary>The nearest encoding, ties to even; larger values and infinities saturate, NaN stays NaN.</summary>
    public static byte FromSingle(float value)
    {
        uint bits = BitConverter.SingleToUInt32Bits(value);
        byte sign = (byte)((bits >> 24) & SignBit);
        float magnitude = MathF.Abs(value);
        if (float.IsNaN(value))
        {
            return (byte)(sign | NaN);
        }

        if (magnitude < SmallestNormal)
        {
            // Eight subnormal steps make the smallest normal number, whose encoding is 8: rounding up needs no care.
            return (byte)(sign | (byte)MathF.Round(magnitude / SmallestSubnormal, MidpointRounding.ToEven));
        }

        uint kept = BitConverter.SingleToUInt32Bits(magnitude);
        uint rounded = (kept + 0x7FFFF + ((kept >> DroppedBits) & 1)) >> DroppedBits;
        return (byte)(sign | (byte)Math.Min(rounded - ExponentShift, LargestEncoding));
    }

    /// <summary>The encoding nearest to a quotient, rounded once; NaN where it is too large or infinite.</summary>
    public static byte FromQuotient(double number, float scale)
    {
        double quotient = number / scale;
        return Math.Abs(quotient) > StorageRange.LargestRoundedToE4M3 ? NaN : FromSingle(RowStorage.RoundToOdd(quotient));
    }

    private static float[] AllValues()
    {
        float[] values = new float[256];
        for (int encoded = 0; encoded < values.Length; encoded++)
        {
            int exponent = (encoded >> 3) & 0xF;
            int fraction = encoded & 7;
            float magnitude = exponent == 0
                ? fraction * SmallestSubnormal
                : (8 + fraction) * MathF.ScaleB(1f, exponent - 10);
            magnitude = (encoded & NaN) == NaN ? float.NaN : magnitude;
            values[encoded] = (encoded & SignBit) == 0 ? magnitude : -magnitude;
        }

        return values;
    }
}
