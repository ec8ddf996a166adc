using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Loading;

public sealed class NonFiniteTests
{
    private const int Keys = 1100;
    private static readonly AttentionShape _shape = new(2, 4, Keys, 6, 3, 5, 7);

    [Theory]
    [InlineData(0, 0, 0, 0, double.NaN, "NaN")]
    [InlineData(1, 517, 1, 3, double.PositiveInfinity, "+inf")]
    [InlineData(1, 1099, 2, 4, double.NegativeInfinity, "-inf")]
    public void A_key_that_is_not_finite_is_named_by_its_global_position(int batch, int position, int head, int dim, double element, string text)
    {
        foreach (string layout in new[] { "contiguous", "zigzag", "striped", "lanes" })
        {
            using var key = HostTensor.Normal("key", ElementType.Float16, [2, Keys, 3, 5], 1);
            key.Write((((((batch * Keys) + position) * 3) + head) * 5) + dim, element);

            FaultException[] faults = [.. Enumerable.Range(0, 3).Select(rank => FaultOf(layout, rank, key)).OfType<FaultException>()];

            FaultException fault = Assert.Single(faults);
            Assert.Equal(FaultCode.BadInput, fault.Code);
            Assert.StartsWith($"key[batch {batch}, position {position}, head {head}, dim {dim}] is {text}: ", fault.Message, StringComparison.Ordinal);
            Assert.Contains("NonFinitePolicy.Propagate", fault.Message, StringComparison.Ordinal);
        }
    }

    [Theory, InlineData(0, 1, 2, 3), InlineData(0, 2, 1, 3), InlineData(3, 2, 1, 0)]
    public void The_first_of_several_is_named_whatever_the_storage_order(params int[] axes)
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, Keys, 3, 5], 1, 1, axes);
        key.Write((((1000 * 3) + 0) * 5) + 0, double.NaN);
        key.Write((((900 * 3) + 2) * 5) + 4, double.NaN);
        key.Write((((900 * 3) + 2) * 5) + 2, double.NaN);
        key.Write(((((Keys + 1) * 3) + 0) * 5) + 0, double.NaN);

        FaultException? fault = FaultOf("zigzag", 0, key, ranks: 1);

        Assert.StartsWith("key[batch 0, position 900, head 2, dim 2] is NaN", fault?.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(ElementType.Float64, ElementType.Float32, 1e300, "is 1E+300, too large for f32", "Scale the tensor down")]
    [InlineData(ElementType.Float64, ElementType.BFloat16, -3.4e38, "is -3.4E+38, too large for bf16", "ElementType.Float32")]
    [InlineData(ElementType.Float32, ElementType.Float16, 1e6, "is 1000000, too large for f16", "ElementType.Float32")]
    [InlineData(ElementType.Float32, ElementType.Float16, 65520, "is 65520, too large for f16, which ends at 65504", "ElementType.Float32")]
    public void An_element_too_large_for_its_storage_is_a_fault_under_either_policy(
        ElementType source, ElementType storage, double element, string what, string wayOut)
    {
        using var key = HostTensor.Normal("key", source, [2, Keys, 3, 5], 1);
        key.Write((((17 * 3) + 1) * 5) + 3, element);

        string? error = FaultOf("contiguous", 0, key, 1, storage, NonFinitePolicy.Error)?.Message;
        string? propagate = FaultOf("contiguous", 0, key, 1, storage, NonFinitePolicy.Propagate)?.Message;

        Assert.StartsWith($"key[batch 0, position 17, head 1, dim 3] {what}", error, StringComparison.Ordinal);
        Assert.Contains(wayOut, error, StringComparison.Ordinal);
        Assert.Equal(error, propagate);
    }

    [Fact]
    public void The_largest_number_that_still_rounds_down_is_stored()
    {
        using var key = HostTensor.Normal("key", ElementType.Float64, [2, Keys, 3, 5], 1);
        key.Write(1234, Math.BitDecrement(65520.0));

        FaultException? fault = FaultOf("contiguous", 0, key, 1, ElementType.Float16);

        Assert.Null(fault);
    }

    [Fact]
    public void Propagate_stores_what_is_not_finite_and_says_so_in_the_limits()
    {
        using var key = HostTensor.Normal("key", ElementType.Float64, [2, Keys, 3, 5], 1);
        using var value = HostTensor.Normal("value", ElementType.Float64, [2, Keys, 3, 7], 2);
        key.Write(((600 * 3) + 1) * 5, double.NaN);
        value.Write(((601 * 3) + 2) * 7, double.NegativeInfinity);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape, ShardLayout.Contiguous.PagesOf(0, 1, Keys), ElementType.BFloat16, false);

        KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Propagate);

        Assert.True(float.IsNaN(shard.Limits[(1 * 3) + 1].LargestKeyNorm));
        Assert.Equal(float.PositiveInfinity, shard.Limits[(1 * 3) + 2].LargestValue);
        Assert.Equal(1, shard.Limits.Count(limits => !float.IsFinite(limits.LargestKeyNorm)));
        Assert.Equal(1, shard.Limits.Count(limits => !float.IsFinite(limits.LargestValue)));
    }

    [Fact]
    public void A_value_is_named_as_one_and_the_memory_is_given_back()
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, Keys, 3, 5], 1);
        using var value = HostTensor.Normal("value", ElementType.Float32, [2, Keys, 3, 7], 2);
        value.Write((((5 * 3) + 2) * 7) + 6, double.NaN);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape, ShardLayout.Contiguous.PagesOf(0, 1, Keys), ElementType.Float32, false);

        FaultException fault = Assert.Throws<FaultException>(
            () => KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error));

        Assert.StartsWith("value[batch 0, position 5, head 2, dim 6] is NaN", fault.Message, StringComparison.Ordinal);
        Assert.Equal(0, device.Allocations);
    }

    [Fact]
    public void Integers_are_refused_by_name()
    {
        using var memory = new HostMemory(2 * Keys * 3 * 5 * 4, ElementType.Int32);
        var key = new TensorView("key", memory.Region.Address, ElementType.Int32, [2, Keys, 3, 5]);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape with { ValueDim = 5 }, ShardLayout.Contiguous.PagesOf(0, 1, Keys), ElementType.Float32, true);

        FaultException fault = Assert.Throws<FaultException>(() => KeyValueLoader.Load(device, plan, key, key, NonFinitePolicy.Error));

        Assert.Equal(FaultCode.BadInput, fault.Code);
        Assert.Contains("key has elements of type i32", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Queries_are_repacked_head_major_in_the_order_of_their_indices()
    {
        using var query = HostTensor.Normal("query", ElementType.Float64, [2, 4, 6, 5], 9, 1, 0, 2, 1, 3);
        using var device = new HostMemoryDevice();
        int[] indices = [3, 0, 2];

        QueryBlock block = QueryLoader.Load(device, _shape, query.View, indices, NonFinitePolicy.Error);

        double[] elements = query.Values;
        float[] expected = [.. from batch in Enumerable.Range(0, 2)
                               from head in Enumerable.Range(0, 6)
                               from i in indices
                               from dim in Enumerable.Range(0, 5)
                               select (float)elements[(((((batch * 4) + i) * 6) + head) * 5) + dim]];
        Assert.Equal(expected, block.Values.AsSpan<float>().ToArray());
    }

    [Fact]
    public void A_query_that_is_not_finite_is_a_fault_only_when_it_is_asked_for()
    {
        using var query = HostTensor.Normal("query", ElementType.Float32, [2, 4, 6, 5], 9);
        query.Write(((((1 * 4) + 2) * 6) + 5) * 5, double.NaN);
        using var device = new HostMemoryDevice();

        FaultException fault = Assert.Throws<FaultException>(
            () => QueryLoader.Load(device, _shape, query.View, [0, 2], NonFinitePolicy.Error));
        QueryBlock block = QueryLoader.Load(device, _shape, query.View, [0, 1, 3], NonFinitePolicy.Error);

        Assert.StartsWith("query[batch 1, position 2, head 5, dim 0] is NaN", fault.Message, StringComparison.Ordinal);
        Assert.Equal(3, block.Count);
    }

    private static FaultException? FaultOf(
        string layout, int rank, HostTensor key, int ranks = 3, ElementType storage = ElementType.Float32,
        NonFinitePolicy policy = NonFinitePolicy.Error)
    {
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape with { ValueDim = 5 }, ShardLayout.Parse(layout).PagesOf(rank, ranks, Keys), storage, true);
        return (FaultException?)Record.Exception(() => KeyValueLoader.Load(device, plan, key.View, key.View, policy));
    }
}
