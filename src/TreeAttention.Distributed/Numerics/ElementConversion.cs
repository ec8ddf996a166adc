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
internal static class ElementConversion
{
    /// <summary>Converts elements to single precision.</summary>
    /// <param name="source">Elements of <paramref name="type"/>, as many as <paramref name="destination"/> holds.</param>
    /// <param name="type">A type of numbers.</param>
    /// <param name="destination">Receives one float for each element.</param>
    /// <exception cref="ArgumentException">The lengths differ, or the type is not a floating-point type.</exception>
    public static void ToFloat(ReadOnlySpan<byte> source, ElementType type, Span<float> destination)
    {
        RequireSameCount(source.Length, type, destination.Length);
        (StorageType.Of(type).Widen ?? throw NotFloatingPoint(type))(source, destination);
    }

    /// <summary>Converts single precision to another type of numbers.</summary>
    /// <param name="source">As many floats as <paramref name="destination"/> holds elements.</param>
    /// <param name="type">A type of numbers.</param>
    /// <param name="destination">Receives one element of <paramref name="type"/> for each float.</param>
    /// <exception cref="ArgumentException">The lengths differ, or the type is not a floating-point type.</exception>
    public static void FromFloat(ReadOnlySpan<float> source, ElementType type, Span<byte> destination)
    {
        RequireSameCount(destination.Length, type, source.Length);
        (StorageType.Of(type).Narrow ?? throw NotFloatingPoint(type))(source, destination);
    }

    /// <summary>The value of one element, exactly.</summary>
    /// <param name="element">Begins with the bytes of the element; what follows is not looked at.</param>
    /// <param name="type">A type of numbers.</param>
    /// <exception cref="ArgumentException">The type is not a floating-point type.</exception>
    public static double ToDouble(ReadOnlySpan<byte> element, ElementType type) => (StorageType.Of(type).Read ?? throw NotFloatingPoint(type))(element);

    /// <summary>Single precision to elements that are to be multiplied by a scale: each nearest to number / scale, rounded once.</summary>
    internal static void Divide<TNumber>(ReadOnlySpan<float> source, float scale, Span<byte> destination)
        where TNumber : IScaledNumber
    {
        for (int i = 0; i < source.Length; i++)
        {
            destination[i] = TNumber.FromQuotient(source[i], scale);
        }
    }

    /// <summary>Double precision to elements that are to be multiplied by a scale: each nearest to number / scale.</summary>
    internal static void DivideExact<TNumber>(ReadOnlySpan<double> source, float scale, Span<byte> destination)
        where TNumber : IScaledNumber
    {
        for (int i = 0; i < source.Length; i++)
        {
            destination[i] = TNumber.FromQuotient(source[i], scale);
        }
    }

    internal static void WidenFloat64(ReadOnlySpan<byte> source, Span<float> destination) =>
        TensorPrimitives.ConvertTruncating(MemoryMarshal.Cast<byte, double>(source), destination);

    internal static void NarrowToFloat64(ReadOnlySpan<float> source, Span<byte> destination) =>
        TensorPrimitives.ConvertTruncating(source, MemoryMarshal.Cast<byte, double>(destination));

    internal static double ReadFloat64(ReadOnlySpan<byte> element) => BinaryPrimitives.ReadDoubleLittleEndian(element);

    internal static void WidenFloat32(ReadOnlySpan<byte> source, Span<float> destination) => source.CopyTo(MemoryMarshal.AsBytes(destination));

    internal static void NarrowToFloat32(ReadOnlySpan<float> source, Span<byte> destination) => MemoryMarshal.AsBytes(source).CopyTo(destination);

    internal static double ReadFloat32(ReadOnlySpan<byte> element) => BinaryPrimitives.ReadSingleLittleEndian(element);

    internal static void WidenFloat16(ReadOnlySpan<byte> source, Span<float> destination) =>
        TensorPrimitives.ConvertToSingle(MemoryMarshal.Cast<byte, Half>(source), destination);

    internal static void NarrowToFloat16(ReadOnlySpan<float> source, Span<byte> destination) =>
        TensorPrimitives.ConvertToHalf(source, MemoryMarshal.Cast<byte, Half>(destination));

    internal static double ReadFloat16(ReadOnlySpan<byte> element) => (double)BinaryPrimitives.ReadHalfLittleEndian(element);

    internal static void WidenBFloat16(ReadOnlySpan<byte> source, Span<float> destination) =>
        WidenBFloat16(MemoryMarshal.Cast<byte, ushort>(source), MemoryMarshal.Cast<float, uint>(destination));

    internal static void NarrowToBFloat16(ReadOnlySpan<float> source, Span<byte> destination) =>
        NarrowToBFloat16(MemoryMarshal.Cast<float, uint>(source), MemoryMarshal.Cast<byte, ushort>(destination));

    internal static double ReadBFloat16(ReadOnlySpan<byte> element) =>
        BitConverter.UInt32BitsToSingle((uint)BinaryPrimitives.ReadUInt16LittleEndian(element) << 16);

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

    /// <summary>Throws unless so many bytes hold as many elements as there are floats.</summary>
    /// <exception cref="ArgumentException">They do not.</exception>
    internal static void RequireSameCount(int bytes, ElementType type, int floats)
    {
        if (bytes != StorageType.Of(type).BytesFor(floats))
        {
            throw new ArgumentException(
                $"{bytes} bytes of {type.ShortName()} and {floats} floats were given: both must hold the same number of elements.");
        }
    }

    private static ArgumentException NotFloatingPoint(ElementType type) =>
        new($"{type.ShortName()} is not a floating-point type.", nameof(type));
}
