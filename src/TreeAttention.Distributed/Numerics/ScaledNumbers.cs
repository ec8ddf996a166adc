using System;

namespace TreeAttention.Distributed.Numerics;

/// <summary>An element of eight bits whose numbers are multiplied by a scale of their KV head.</summary>
internal interface IScaledNumber
{
    /// <summary>The encoding nearest to a quotient, rounded once, ties to even; NaN's where it is too large, infinite or NaN.</summary>
    static abstract byte FromQuotient(double number, float scale);
}

/// <summary>The 8-bit float of OCP's E4M3: sign, 4 bits of exponent (bias 7), 3 of fraction; ±448 at most, no infinity.</summary>
internal readonly struct Float8E4M3 : IScaledNumber
{
    /// <summary>The largest number.</summary>
    public const float Largest = 448;

    /// <summary>The largest number that rounds to it: halfway to 480, which NaN stands for.</summary>
    public const float LargestRounded = 464;

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
        return Math.Abs(quotient) > LargestRounded ? NaN : FromSingle(RowStorage.RoundToOdd(quotient));
    }

    /// <inheritdoc cref="StorageType.Widening"/>
    public static void Widen(ReadOnlySpan<byte> elements, Span<float> numbers)
    {
        for (int i = 0; i < elements.Length; i++)
        {
            numbers[i] = _values[elements[i]];
        }
    }

    /// <inheritdoc cref="StorageType.Narrowing"/>
    public static void Narrow(ReadOnlySpan<float> numbers, Span<byte> elements)
    {
        for (int i = 0; i < numbers.Length; i++)
        {
            elements[i] = FromSingle(numbers[i]);
        }
    }

    /// <inheritdoc cref="StorageType.Reading"/>
    public static double Read(ReadOnlySpan<byte> element) => _values[element[0]];

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

/// <summary>A whole number of eight bits, the same range on both sides of 0: -127 to 127. -128 stands for what is no number.</summary>
internal readonly struct SymmetricInt8 : IScaledNumber
{
    /// <summary>The largest number.</summary>
    public const int Largest = 127;

    private const sbyte NaN = sbyte.MinValue;

    /// <inheritdoc/>
    public static byte FromQuotient(double number, float scale)
    {
        double quotient = Math.Round(number / scale, MidpointRounding.ToEven);
        return (byte)(Math.Abs(quotient) <= Largest ? (sbyte)quotient : NaN);
    }

    /// <inheritdoc cref="StorageType.Widening"/>
    public static void Widen(ReadOnlySpan<byte> elements, Span<float> numbers)
    {
        for (int i = 0; i < elements.Length; i++)
        {
            numbers[i] = ToSingle(elements[i]);
        }
    }

    /// <inheritdoc cref="StorageType.Narrowing"/>
    /// <remarks>Larger numbers and infinities saturate.</remarks>
    public static void Narrow(ReadOnlySpan<float> numbers, Span<byte> elements)
    {
        for (int i = 0; i < numbers.Length; i++)
        {
            elements[i] = FromQuotient(Math.Clamp(numbers[i], -Largest, Largest), 1f);
        }
    }

    /// <inheritdoc cref="StorageType.Reading"/>
    public static double Read(ReadOnlySpan<byte> element) => ToSingle(element[0]);

    private static float ToSingle(byte element) => (sbyte)element == NaN ? float.NaN : (sbyte)element;
}
