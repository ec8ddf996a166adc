using System;
using TreeAttention.Distributed.Cache;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Loading;

/// <summary>Loading keys and values into int8 storage with scales of each KV head, given or measured.</summary>
public sealed class Int8LoadingTests
{
    private static readonly AttentionShape _shape = new(1, 1, 3, 2, 2, 2, 2);
    private static readonly KeyValueScales _scales = new([3f, 0.5f], [1f, 0.25f]);

    public static TheoryData<ElementType> Sources => [ElementType.Float64, ElementType.Float32, ElementType.Float16, ElementType.BFloat16];

    [Theory, MemberData(nameof(Sources))]
    public void An_element_is_stored_as_the_nearest_to_its_quotient_by_the_scale(ElementType source)
    {
        // [key][head][dim]: 7.5 / 3 and 4.5 / 3 are ties; -380 / 3 is -126.67, which rounding toward zero would not store as -127.
        double[] keys = [7.5, -4.5, 1, 63.5, -380, 0, 0.3, 0.001, 224, -0.01, 5.5, 50];
        using var key = new HostTensor("key", source, [1, 3, 2, 2], keys);

        (float[] stored, _) = Load(key.View, key.View, insideKeys: true);

        double[] exact = key.Values;
        for (int i = 0; i < 12; i++)
        {
            (int position, int head, int dim) = (i / 4, i / 2 % 2, i % 2);
            Assert.Equal((float)Math.Round(exact[i] / _scales.Key[head], MidpointRounding.ToEven), stored[(((head * 3) + position) * 2) + dim]);
        }
    }

    [Theory]
    [InlineData(382.49)]
    [InlineData(-382.49)]
    public void A_number_is_stored_below_half_a_step_above_127_times_the_scale_and_never_as_128(double last)
    {
        using var key = new HostTensor("key", ElementType.Float64, [1, 3, 2, 2], [last, .. new double[11]]);
        using var beyond = new HostTensor("key", ElementType.Float64, [1, 3, 2, 2], [.. new double[4], Math.Sign(last) * 382.5, .. new double[7]]);

        (float[] stored, _) = Load(key.View, key.View, insideKeys: true);
        FaultException fault = Assert.Throws<FaultException>(() => Load(beyond.View, beyond.View, insideKeys: true));

        Assert.Equal(127 * Math.Sign(last), stored[0]);
        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.StartsWith($"key[batch 0, position 1, head 0, dim 0] is {(last < 0 ? "-" : "")}382.5, too large for i8 with a scale of 3, which ends at 381. Give a larger KeyValueScales.Key", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_tensor_of_i8_is_taken_as_it_is_and_multiplied()
    {
        using var key = new HostTensor("key", ElementType.Int8, [1, 3, 2, 2], [1, -127, 127, -3, .. new double[8]]);
        TensorView scaled = key.View.WithHeadScales(_scales.Key);

        (float[] stored, PageLimits[] limits) = Load(scaled, scaled, insideKeys: true);

        Assert.Equal([1, -127, 0, 0, 0, 0, 127, -3, 0, 0, 0, 0], stored);
        Assert.Equal(381, limits[0].LargestValue);
        Assert.Equal(63.5f, limits[1].LargestValue);
    }

    [Fact]
    public void Minus_128_stands_for_NaN()
    {
        using var key = new HostTensor("key", ElementType.Int8, [1, 3, 2, 2], [.. new double[2], double.NaN, .. new double[9]]);
        TensorView scaled = key.View.WithHeadScales(_scales.Key);

        FaultException fault = Assert.Throws<FaultException>(() => Load(scaled, scaled, insideKeys: true));
        (float[] stored, PageLimits[] limits) = Load(scaled, scaled, insideKeys: true, NonFinitePolicy.Propagate);

        Assert.StartsWith("key[batch 0, position 0, head 1, dim 0] is NaN, which i8 has as -128", fault.Message, StringComparison.Ordinal);
        Assert.True(float.IsNaN(stored[6]));
        Assert.True(float.IsNaN(limits[1].LargestKeyNorm) && float.IsFinite(limits[0].LargestKeyNorm));
    }

    [Fact]
    public void An_infinity_is_a_fault_even_where_NaN_propagates()
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [double.PositiveInfinity, .. new double[11]]);

        FaultException fault = Assert.Throws<FaultException>(() => Load(key.View, key.View, policy: NonFinitePolicy.Propagate));

        Assert.StartsWith("key[batch 0, position 0, head 0, dim 0] is +inf, and i8 has no infinity", fault.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1, ElementType.Int8)]
    [InlineData(2, ElementType.Int8)]
    [InlineData(5, ElementType.Int8)] // more ranks than tokens
    [InlineData(3, ElementType.Float8E4M3)]
    public void Measured_scales_are_the_largest_magnitude_of_each_head_for_any_number_of_ranks(int ranks, ElementType storage)
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 3, 2, 2], [1, 2, 0, 0, -7, 3, 0, 0, 5, 6.5, 0, 0]);
        using var value = new HostTensor("value", ElementType.Float32, [1, 3, 2, 2], [0, 0, 0.5, 0, 0, 0, 1, -2, 0, 1e-40, 1, 1]);
        var options = new CacheOptions { KvHeads = 2, HeadDim = 2, ValueDim = 2, MaxLength = 3 };
        double largest = storage == ElementType.Int8 ? 127 : 448;

        CacheRanks.Run(ranks, context =>
        {
            var meter = new ScaleMeter(options);
            meter.Measure(new TensorTokens(key.View, value.View, options), 3, context.Transport.Rank, ranks);
            KeyValueScales scales = meter.Agree(context.Control, storage);

            Assert.Equal([(float)(7 / largest), 1f], scales.Key); // a head of zeros has a scale of 1
            Assert.Equal([KeyValueScales.Smallest, (float)(2 / largest)], scales.Value);
        });
    }

    [Fact]
    public void Measured_keys_are_those_that_are_stored_rotated()
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 2, 1, 2], [1, 1, 1, 1]);
        using var value = new HostTensor("value", ElementType.Float32, [1, 2, 1, 2], [1, 1, 1, 1]);
        var options = new CacheOptions { KvHeads = 1, HeadDim = 2, ValueDim = 2, MaxLength = 2, Rotary = new RotaryOptions(2) };

        CacheRanks.Run(1, context =>
        {
            var meter = new ScaleMeter(options);
            meter.Measure(new TensorTokens(key.View, value.View, options), 2, 0, 1);
            KeyValueScales scales = meter.Agree(context.Control, ElementType.Int8);

            Assert.Equal((Math.Cos(1) + Math.Sin(1)) / 127, scales.Key[0], 1e-6);
            Assert.Equal(1 / 127.0, scales.Value[0], 1e-9);
        });
    }

    private static (float[] Stored, PageLimits[] Limits) Load(
        TensorView key, TensorView value, bool insideKeys = false, NonFinitePolicy policy = NonFinitePolicy.Error)
    {
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape, ShardLayout.Contiguous.PagesOf(0, 1, 3), ElementType.Int8, insideKeys, _scales);
        KeyValueShard shard = KeyValueLoader.Load(device, plan, key, value, policy);
        float[] stored = new float[shard.Plan.Elements];
        ElementConversion.ToFloat(shard.Contents.AsSpan<byte>(), ElementType.Int8, stored);
        return (stored, shard.Limits);
    }
}
