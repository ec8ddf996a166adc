using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Loading;

/// <summary>Loading keys and values into f8e4m3 storage with scales of each KV head.</summary>
public sealed class Float8LoadingTests
{
    private static readonly AttentionShape _shape = new(1, 1, 3, 2, 2, 2, 2);
    private static readonly KeyValueScales _scales = new([3f, 0.5f], [1f, 0.25f]);

    public static TheoryData<ElementType> Sources => [ElementType.Float64, ElementType.Float32, ElementType.Float16, ElementType.BFloat16];

    [Theory, MemberData(nameof(Sources))]
    public void An_element_is_stored_as_the_nearest_to_its_quotient_by_the_scale(ElementType source)
    {
        double[] keys = [51, -3, 1, 231, 1344, 0, 0.3, 0.001, 224, -0.01, 5.5, 50]; // [key][head][dim]
        using var key = new HostTensor("key", source, [1, 3, 2, 2], keys);
        using var value = new HostTensor("value", source, [1, 3, 2, 2], keys.Select(x => x / 16).ToArray());

        (float[] stored, _) = Load(key.View, value.View);

        double[] exact = key.Values;
        double[] exactValues = value.Values;
        for (int i = 0; i < 12; i++)
        {
            (int position, int head, int dim) = (i / 4, i / 2 % 2, i % 2);
            int place = (((head * 3) + position) * 2) + dim;
            Assert.Equal(Nearest(exact[i] / _scales.Key[head]), stored[place]);
            Assert.Equal(Nearest(exactValues[i] / _scales.Value[head]), stored[12 + place]);
        }
    }

    [Fact]
    public void A_quotient_next_to_a_tie_is_not_rounded_twice()
    {
        // 17 is the tie between 16 and 18; single precision cannot tell the quotient of the second from it.
        using var key = new HostTensor("key", ElementType.Float64, [1, 3, 2, 2], [51, 51 + 1e-9, 51 - 1e-9, .. new double[9]]);

        (float[] stored, _) = Load(key.View, key.View);

        Assert.Equal([16f, 18f], stored[..2]);
    }

    [Fact]
    public void Limits_are_of_numbers_not_of_stored_elements()
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [9, 12, 0, 0, 3, -12, 0, 0, 0, 0, 5, 0]);
        using var value = new HostTensor("value", ElementType.Float32, [1, 3, 2, 2], [9, 12, 0, 0, 3, -12, 0, 0, 0, 0, 5, -0.25]);

        (_, PageLimits[] limits) = Load(key.View, value.View);

        Assert.Equal(15, limits[0].LargestKeyNorm, 1e-5f);
        Assert.Equal(5, limits[1].LargestKeyNorm, 1e-5f);
        Assert.Equal(12, limits[0].LargestValue);
        Assert.Equal(5, limits[1].LargestValue);
    }

    [Theory]
    [InlineData(1392, 464)] // the last number that rounds to 448, whatever is above would be NaN
    [InlineData(-1392, -464)]
    public void A_number_is_stored_up_to_half_a_step_above_448_times_the_scale(double last, double quotient)
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [last, .. new double[11]]);
        using var beyond = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [.. new double[4], MathF.BitIncrement((float)Math.Abs(last)), .. new double[7]]);

        (float[] stored, _) = Load(key.View, key.View, insideKeys: true);
        FaultException fault = Assert.Throws<FaultException>(() => Load(beyond.View, beyond.View, insideKeys: true));

        Assert.Equal(448 * Math.Sign(quotient), stored[0]);
        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.StartsWith("key[batch 0, position 1, head 0, dim 0] is 1392.0001", fault.Message, StringComparison.Ordinal);
        Assert.Contains("with a scale of 3, which ends at 1344. Give a larger KeyValueScales.Key", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_infinity_is_a_fault_even_where_NaN_propagates()
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [double.NaN, .. new double[11]]);
        using var value = new HostTensor("value", ElementType.Float32, [1, 3, 2, 2], [0, 0, double.NegativeInfinity, .. new double[9]]);

        (float[] stored, PageLimits[] limits) = Load(key.View, key.View, policy: NonFinitePolicy.Propagate);
        FaultException fault = Assert.Throws<FaultException>(() => Load(key.View, value.View, policy: NonFinitePolicy.Propagate));

        Assert.True(float.IsNaN(stored[0]));
        Assert.True(float.IsNaN(limits[0].LargestKeyNorm) && float.IsFinite(limits[1].LargestKeyNorm));
        Assert.StartsWith("value[batch 0, position 0, head 1, dim 0] is -inf, and f8e4m3 has no infinity", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tensor_of_f8e4m3_is_taken_as_it_is_and_multiplied()
    {
        using var key = new HostTensor("key", ElementType.Float8E4M3, [1, 3, 2, 2], [1, 1.125, 448, -0.001953125, .. new double[8]]);
        TensorView scaled = key.View.WithHeadScales(_scales.Key);

        (float[] stored, PageLimits[] limits) = Load(scaled, scaled, insideKeys: true);

        Assert.Equal([1, 1.125f, 0, 0, 0, 0, 448, -0.001953125f, 0, 0, 0, 0], stored);
        Assert.Equal(224, limits[1].LargestValue);
    }

    [Fact]
    public void Scales_that_do_not_fit_are_refused()
    {
        Assert.Throws<ArgumentException>(() => new KeyValueScales([1f], [0f]));
        Assert.Throws<ArgumentException>(() => new KeyValueScales([float.NaN], [1f]));
        Assert.Throws<ArgumentException>(() => new KeyValueScales([1f], [1f, 1f]));
        Assert.Throws<ShapeMismatchException>(() => PlanOf(ElementType.Float8E4M3, new KeyValueScales([1f], [1f])));
        Assert.Throws<ShapeMismatchException>(() => PlanOf(ElementType.Float16, _scales));
    }

    private static ShardPlan PlanOf(ElementType type, KeyValueScales scales, bool insideKeys = false) =>
        new(_shape, ShardLayout.Contiguous.PagesOf(0, 1, 3), type, insideKeys, scales);

    private static (float[] Stored, PageLimits[] Limits) Load(
        TensorView key, TensorView value, bool insideKeys = false, NonFinitePolicy policy = NonFinitePolicy.Error)
    {
        using var device = new HostMemoryDevice();
        KeyValueShard shard = KeyValueLoader.Load(device, PlanOf(ElementType.Float8E4M3, _scales, insideKeys), key, value, policy);
        float[] stored = new float[shard.Plan.Elements];
        ElementConversion.ToFloat(shard.Contents.AsSpan<byte>(), ElementType.Float8E4M3, stored);
        return (stored, shard.Limits);
    }

    private static float Nearest(double exact)
    {
        double unit = exact == 0 ? 1 : Math.ScaleB(1, Math.Max(Math.ILogB(exact), -6) - 3);
        return (float)(Math.Round(exact / unit, MidpointRounding.ToEven) * unit);
    }
}
