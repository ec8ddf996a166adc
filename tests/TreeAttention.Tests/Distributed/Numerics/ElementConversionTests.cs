using System;
using System.Buffers.Binary;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Numerics;

public class ElementConversionTests
{
    [Fact]
    public void Every_f16_widens_to_the_value_of_its_definition()
    {
        byte[] encoded = AllSixteenBitPatterns();
        float[] widened = new float[65536];

        ElementConversion.ToFloat(encoded, ElementType.Float16, widened);

        for (int bits = 0; bits < widened.Length; bits++)
        {
            Assert.Equal(DefinedValue(bits, exponentBits: 5, fractionBits: 10), widened[bits]);
        }
    }

    [Fact]
    public void Every_bf16_widens_to_the_value_of_its_definition()
    {
        byte[] encoded = AllSixteenBitPatterns();
        float[] widened = new float[65536];

        ElementConversion.ToFloat(encoded, ElementType.BFloat16, widened);

        for (int bits = 0; bits < widened.Length; bits++)
        {
            Assert.Equal(DefinedValue(bits, exponentBits: 8, fractionBits: 7), widened[bits]);
        }
    }

    [Theory]
    [InlineData(0x00, 0f)]
    [InlineData(0x01, 0.001953125f)]
    [InlineData(0x07, 0.013671875f)]
    [InlineData(0x08, 0.015625f)]
    [InlineData(0x38, 1f)]
    [InlineData(0xB9, -1.125f)]
    [InlineData(0x7E, 448f)]
    [InlineData(0xFE, -448f)]
    [InlineData(0x7F, float.NaN)]
    [InlineData(0xFF, float.NaN)]
    public void An_f8e4m3_widens_to_the_value_the_OCP_specification_gives(byte encoded, float expected)
    {
        float[] widened = new float[1];

        ElementConversion.ToFloat([encoded], ElementType.Float8E4M3, widened);

        Assert.Equal(expected, widened[0]);
    }

    [Theory]
    [InlineData(ElementType.Float16)]
    [InlineData(ElementType.BFloat16)]
    public void Every_number_of_two_bytes_survives_widening_and_narrowing_to_the_bit(ElementType type)
    {
        byte[] encoded = AllSixteenBitPatterns();
        float[] widened = new float[65536];
        byte[] narrowed = new byte[encoded.Length];

        ElementConversion.ToFloat(encoded, type, widened);
        ElementConversion.FromFloat(widened, type, narrowed);

        for (int bits = 0; bits < widened.Length; bits++)
        {
            ushort back = BinaryPrimitives.ReadUInt16LittleEndian(narrowed.AsSpan(2 * bits));
            Assert.True(
                float.IsNaN(widened[bits]) ? double.IsNaN(ElementConversion.ToDouble(narrowed.AsSpan(2 * bits), type)) : back == bits,
                $"{bits:x4} came back as {back:x4}");
        }
    }

    [Theory]
    [InlineData(ElementType.Float16, 10)]
    [InlineData(ElementType.BFloat16, 7)]
    public void Narrowing_rounds_to_the_nearest_and_ties_to_even(ElementType type, int fractionBits)
    {
        float step = MathF.ScaleB(1f, -fractionBits);
        float justMoreThanHalf = MathF.BitIncrement(1f + (step / 2));
        float[] values = [1f + (step / 2), 1f + (3 * step / 2), justMoreThanHalf, -1f - (step / 2), -justMoreThanHalf];
        float[] expected = [1f, 1f + (2 * step), 1f + step, -1f, -1f - step];

        float[] rounded = Repeat(values, 7, all => RoundTrip(all, type));

        Assert.Equal(Repeat(expected, 7, all => all), rounded);
    }

    [Fact]
    public void Narrowing_a_million_random_bit_patterns_agrees_with_exact_neighbours()
    {
        const int seed = 20261;
        var random = new Random(seed);
        float[] values = new float[1_000_003];
        random.NextBytes(MemoryMarshal.AsBytes(values.AsSpan()));

        float[] halves = RoundTrip(values, ElementType.Float16);
        float[] brains = RoundTrip(values, ElementType.BFloat16);

        for (int i = 0; i < values.Length; i++)
        {
            float half = (float)(Half)values[i];
            Assert.True(half.Equals(halves[i]), $"seed {seed}: {values[i]:R} became {halves[i]:R} instead of {half:R}");
            Assert.True(IsNearestBFloat16(values[i], brains[i]), $"seed {seed}: {values[i]:R} became {brains[i]:R}");
        }
    }

    [Theory]
    [InlineData(ElementType.Float16, float.PositiveInfinity, float.PositiveInfinity)]
    [InlineData(ElementType.Float16, 65519.99f, 65504f)]
    [InlineData(ElementType.Float16, 65520f, float.PositiveInfinity)]
    [InlineData(ElementType.BFloat16, float.NegativeInfinity, float.NegativeInfinity)]
    [InlineData(ElementType.BFloat16, float.MaxValue, float.PositiveInfinity)]
    [InlineData(ElementType.Float8E4M3, float.PositiveInfinity, 448f)]
    [InlineData(ElementType.Float8E4M3, -1e9f, -448f)]
    [InlineData(ElementType.Float8E4M3, 480f, 448f)]
    [InlineData(ElementType.Float8E4M3, float.NaN, float.NaN)]
    [InlineData(ElementType.Int8, float.PositiveInfinity, 127f)]
    [InlineData(ElementType.Int8, -128f, -127f)]
    [InlineData(ElementType.Int8, float.NaN, float.NaN)]
    [InlineData(ElementType.Int8, 2.5f, 2f)]
    [InlineData(ElementType.Int8, -3.5f, -4f)]
    [InlineData(ElementType.Int8, -0.75f, -1f)]
    [InlineData(ElementType.Float16, float.NaN, float.NaN)]
    [InlineData(ElementType.BFloat16, float.NaN, float.NaN)]
    public void Narrowing_beyond_the_range_follows_the_rule_of_the_type(ElementType type, float value, float expected) =>
        Assert.Equal(expected, RoundTrip([value], type)[0]);

    [Fact]
    public void A_NaN_whose_only_set_bits_are_dropped_stays_a_NaN_in_bf16()
    {
        float[] quietAndSignalling = [BitConverter.UInt32BitsToSingle(0x7F800001), BitConverter.UInt32BitsToSingle(0xFFFFFFFF)];

        float[] rounded = Repeat(quietAndSignalling, 17, all => RoundTrip(all, ElementType.BFloat16));

        Assert.All(rounded, value => Assert.True(float.IsNaN(value)));
    }

    [Fact]
    public void Every_f8e4m3_and_every_point_between_two_neighbours_rounds_to_the_nearest()
    {
        for (int encoded = 0; encoded < 0x7E; encoded++)
        {
            float lower = RoundTripOfByte((byte)encoded);
            float upper = RoundTripOfByte((byte)(encoded + 1));
            float middle = (lower + upper) / 2;
            float even = (encoded & 1) == 0 ? lower : upper;

            float[] rounded = RoundTrip(
                [lower, -lower, MathF.BitDecrement(middle), middle, MathF.BitIncrement(middle), -middle], ElementType.Float8E4M3);

            Assert.Equal([lower, -lower, lower, even, upper, -even], rounded);
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(15)]
    [InlineData(33)]
    [InlineData(577)]
    public void Double_precision_narrows_to_the_nearest_float_and_widens_exactly(int count)
    {
        double[] values = new double[count];
        for (int i = 0; i < count; i++)
        {
            values[i] = Math.PI * Math.Pow(-1.7, i % 40);
        }

        float[] narrowed = new float[count];
        double[] widened = new double[count];
        ElementConversion.ToFloat(MemoryMarshal.AsBytes<double>(values), ElementType.Float64, narrowed);
        ElementConversion.FromFloat(narrowed, ElementType.Float64, MemoryMarshal.AsBytes(widened.AsSpan()));

        for (int i = 0; i < count; i++)
        {
            Assert.Equal((float)values[i], narrowed[i]);
            Assert.Equal(narrowed[i], widened[i]);
        }
    }

    [Theory]
    [InlineData(ElementType.Float64)]
    [InlineData(ElementType.Float32)]
    [InlineData(ElementType.Float16)]
    [InlineData(ElementType.BFloat16)]
    [InlineData(ElementType.Float8E4M3)]
    public void One_element_reads_as_the_row_does_even_where_it_is_not_aligned(ElementType type)
    {
        float[] values = [0.1f, -2.75f, 300f, 0f, -0f, 1e-2f, 7f];
        byte[] memory = new byte[1 + (values.Length * type.SizeInBytes())];
        Span<byte> row = memory.AsSpan(1);
        float[] widened = new float[values.Length];

        ElementConversion.FromFloat(values, type, row);
        ElementConversion.ToFloat(row, type, widened);

        for (int i = 0; i < values.Length; i++)
        {
            Assert.Equal(widened[i], ElementConversion.ToDouble(row[(i * type.SizeInBytes())..], type));
            Assert.InRange(widened[i], values[i] - (0.04f * MathF.Abs(values[i])), values[i] + (0.04f * MathF.Abs(values[i])));
        }
    }

    [Fact]
    public void Lengths_that_disagree_and_types_without_fraction_are_refused()
    {
        ArgumentException lengths = Assert.Throws<ArgumentException>(
            () => ElementConversion.ToFloat(new byte[6], ElementType.Float16, new float[2]));
        ArgumentException type = Assert.Throws<ArgumentException>(
            () => ElementConversion.FromFloat(new float[2], ElementType.Int32, new byte[8]));

        Assert.Contains("6 bytes of f16 and 2 floats", lengths.Message, StringComparison.Ordinal);
        Assert.Contains("i32", type.Message, StringComparison.Ordinal);
    }

    private static byte[] AllSixteenBitPatterns()
    {
        byte[] encoded = new byte[2 * 65536];
        for (int bits = 0; bits < 65536; bits++)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(encoded.AsSpan(2 * bits), (ushort)bits);
        }

        return encoded;
    }

    private static float DefinedValue(int bits, int exponentBits, int fractionBits)
    {
        int exponent = (bits >> fractionBits) & ((1 << exponentBits) - 1);
        int fraction = bits & ((1 << fractionBits) - 1);
        int bias = (1 << (exponentBits - 1)) - 1;
        double magnitude = exponent == (1 << exponentBits) - 1
            ? fraction == 0 ? double.PositiveInfinity : double.NaN
            : exponent == 0
                ? fraction * Math.Pow(2, 1 - bias - fractionBits)
                : ((1 << fractionBits) + fraction) * Math.Pow(2, exponent - bias - fractionBits);
        return (float)((bits & 0x8000) == 0 ? magnitude : -magnitude);
    }

    private static bool IsNearestBFloat16(float value, float rounded)
    {
        if (float.IsNaN(value) || float.IsInfinity(value))
        {
            return value.Equals(rounded);
        }

        uint bits = BitConverter.SingleToUInt32Bits(value);
        double below = BitConverter.UInt32BitsToSingle(bits & 0xFFFF0000);
        double step = Math.Abs(below) >= BitConverter.UInt32BitsToSingle(0x00800000)
            ? Math.ScaleB(1, Math.ILogB(below) - 7)
            : BitConverter.UInt32BitsToSingle(0x00010000);
        double above = below + (float.IsNegative(value) ? -step : step);
        double toBelow = Math.Abs(value - below);
        double toAbove = Math.Abs(above - value);
        double expected = toBelow < toAbove || (toBelow == toAbove && (bits & 0x10000) == 0) ? below : above;
        return (Math.Abs(expected) > 3.39e38 ? Math.CopySign(double.PositiveInfinity, expected) : expected).Equals(rounded);
    }

    private static float RoundTripOfByte(byte encoded)
    {
        float[] widened = new float[1];
        ElementConversion.ToFloat([encoded], ElementType.Float8E4M3, widened);
        return widened[0];
    }

    private static float[] RoundTrip(float[] values, ElementType type)
    {
        byte[] narrowed = new byte[values.Length * type.SizeInBytes()];
        float[] widened = new float[values.Length];
        ElementConversion.FromFloat(values, type, narrowed);
        ElementConversion.ToFloat(narrowed, type, widened);
        return widened;
    }

    // Long enough to pass through the vector loop and its tail.
    private static float[] Repeat(float[] values, int times, Func<float[], float[]> act)
    {
        float[] all = new float[values.Length * times];
        for (int i = 0; i < all.Length; i++)
        {
            all[i] = values[i % values.Length];
        }

        return act(all);
    }
}
