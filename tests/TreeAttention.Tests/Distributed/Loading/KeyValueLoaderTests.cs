using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Loading;

public sealed class KeyValueLoaderTests
{
    private const int Keys = 1100; // more than two pages
    private static readonly AttentionShape _shape = new(2, 1, Keys, 6, 3, 5, 7);
    private static readonly string[] _layouts = ["contiguous", "zigzag", "striped", "cyclic:3", "lanes"];
    private static readonly int[] _ranks = [1, 3];
    private static readonly int[][] _orders = [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [1, 3, 0, 2]];
    private static readonly ElementType[] _stored = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3];

    public static TheoryData<string, int, int> Layouts => new(
        from layout in _layouts
        from ranks in _ranks
        from order in Enumerable.Range(0, _orders.Length)
        select (layout, ranks, order));

    [Theory, MemberData(nameof(Layouts))]
    public void Every_key_and_value_lies_where_the_plan_says(string layout, int ranks, int order)
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, Keys, 3, 5], 1, 1, _orders[order]);
        using var value = HostTensor.Normal("value", ElementType.Float32, [2, Keys, 3, 7], 2, 1, _orders[order]);
        double[] keys = key.Values;
        double[] values = value.Values;
        using var device = new HostMemoryDevice();
        int seen = 0;
        for (int rank = 0; rank < ranks; rank++)
        {
            var plan = new ShardPlan(_shape, ShardLayout.Parse(layout).PagesOf(rank, ranks, Keys), ElementType.Float32, false);

            KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error);

            float[] contents = shard.Contents.AsSpan<float>().ToArray();
            foreach ((KeyPage page, int head, int index) in RowsOf(plan))
            {
                int source = (((page.Batch * Keys) + page.Span.PositionAt(index)) * 3) + head;
                int target = (head * page.Span.Count) + index;
                Assert.Equal(keys[(source * 5)..((source * 5) + 5)], Row(contents, page.KeyOffset, target, 5));
                Assert.Equal(values[(source * 7)..((source * 7) + 7)], Row(contents, page.ValueOffset, target, 7));
                seen++;
            }
        }

        Assert.Equal(2 * Keys * 3, seen);
    }

    [Fact]
    public void Every_source_type_is_rounded_once_to_every_storage_type()
    {
        foreach (ElementType source in (ElementType[])[ElementType.Float64, .. _stored])
        {
            using var key = HostTensor.Normal("key", source, [2, Keys, 3, 5], 3);
            using var value = HostTensor.Normal("value", source, [2, Keys, 3, 7], 4);
            foreach (ElementType storage in _stored)
            {
                using var device = new HostMemoryDevice();
                var plan = new ShardPlan(_shape, ShardLayout.Contiguous.PagesOf(0, 1, Keys), storage, false);

                KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error);

                double[] keys = key.Values;
                int element = 0;
                foreach ((KeyPage page, int head, int index) in RowsOf(plan).Where(row => row.Page.Batch == 1))
                {
                    double exact = keys[((((Keys + page.Span.PositionAt(index)) * 3) + head) * 5) + 2];
                    Region bytes = shard.Contents.Slice(page.KeyOffset + (((head * page.Span.Count) + index) * 5) + 2, 1);
                    double stored = ElementConversion.ToDouble(bytes.AsSpan<byte>(), storage);
                    Assert.Equal(Nearest(exact, storage), stored);
                    element++;
                }

                Assert.Equal(Keys * 3, element);
            }
        }
    }

    [Fact]
    public void A_double_next_to_a_tie_is_not_rounded_twice()
    {
        // 1 + 2^-11 is the tie between 1 and the next half; 2^-40 above it must decide, though single precision cannot hold it.
        double[] elements = [1 + Math.ScaleB(1, -11) + Math.ScaleB(1, -40), -1 - Math.ScaleB(3, -11) + Math.ScaleB(1, -40), 1 + Math.ScaleB(1, -11)];
        using var key = new HostTensor("key", ElementType.Float64, [1, 3, 1, 1], elements);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(new AttentionShape(1, 1, 3, 1, 1, 1, 1), ShardLayout.Contiguous.PagesOf(0, 1, 3), ElementType.Float16, true);

        KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, key.View, NonFinitePolicy.Error);

        Half[] stored = shard.Contents.AsSpan<Half>().ToArray();
        Assert.Equal([1 + Math.ScaleB(1, -10), -1 - Math.ScaleB(1, -10), 1], stored.Select(half => (double)half));
    }

    [Fact]
    public void Limits_bound_every_stored_row_and_are_reached()
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, Keys, 3, 5], 5);
        using var value = HostTensor.Normal("value", ElementType.Float32, [2, Keys, 3, 7], 6);
        foreach (bool inside in new[] { false, true })
        {
            AttentionShape shape = _shape with { ValueDim = inside ? 3 : 7 };
            var plan = new ShardPlan(shape, ShardLayout.Zigzag.PagesOf(1, 2, Keys), ElementType.BFloat16, inside);
            using var device = new HostMemoryDevice();

            KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error);

            Assert.Equal(plan.Pages.Count * 3, shard.Limits.Length);
            foreach ((KeyPage page, int i) in plan.Pages.Select((page, i) => (page, i)))
            {
                for (int head = 0; head < 3; head++)
                {
                    double[][] keys = Stored(shard, page.KeyOffset, page, head, 5);
                    double[][] values = inside ? keys : Stored(shard, page.ValueOffset, page, head, 7);
                    double norm = keys.Max(row => Math.Sqrt(row.Sum(x => x * x)));
                    PageLimits limits = shard.Limits[(i * 3) + head];
                    Assert.InRange(limits.LargestKeyNorm, norm, norm * (1 + 2e-7));
                    Assert.Equal(values.Max(row => row.Take(shape.ValueDim).Max(Math.Abs)), limits.LargestValue);
                }
            }
        }
    }

    [Fact]
    public void Extreme_but_finite_numbers_are_loaded_and_their_norm_is_beyond_single_precision()
    {
        using var key = new HostTensor("key", ElementType.Float32, [1, 1, 1, 2], [float.MaxValue, -float.MaxValue]);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(new AttentionShape(1, 1, 1, 1, 1, 2, 2), ShardLayout.Contiguous.PagesOf(0, 1, 1), ElementType.Float32, true);

        KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, key.View, NonFinitePolicy.Error);

        Assert.Equal(new PageLimits(float.PositiveInfinity, float.MaxValue), shard.Limits[0]);
    }

    [Fact]
    public void A_device_with_memory_of_its_own_gets_the_same_bytes()
    {
        using var key = HostTensor.Normal("key", ElementType.Float16, [2, Keys, 3, 5], 7);
        using var value = HostTensor.Normal("value", ElementType.Float16, [2, Keys, 3, 7], 8);
        using var host = new HostMemoryDevice();
        using var device = new HostMemoryDevice(MemoryPlace.Device);
        var plan = new ShardPlan(_shape, ShardLayout.Striped.PagesOf(1, 2, Keys), ElementType.BFloat16, false);

        KeyValueShard expected = KeyValueLoader.Load(host, plan, key.View, value.View, NonFinitePolicy.Error);
        KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error);

        Assert.Equal(MemoryPlace.Device, shard.Contents.Place);
        Assert.Equal(expected.Contents.AsSpan<byte>(), HostMemoryDevice.OnHost(shard.Contents).AsSpan<byte>());
        Assert.Equal(expected.Limits, shard.Limits);
    }

    [Fact]
    public void No_keys_are_an_empty_shard()
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, 1, 3, 5], 1);
        using var value = HostTensor.Normal("value", ElementType.Float32, [2, 1, 3, 7], 2);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape with { KeyLength = 1 }, ShardLayout.Contiguous.PagesOf(1, 2, 1), ElementType.Float32, false);

        KeyValueShard shard = KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error);

        Assert.Equal(0, shard.Contents.Bytes);
        Assert.Empty(shard.Limits);
    }

    [Fact]
    public void A_tensor_of_another_shape_is_refused_with_both_shapes()
    {
        using var key = HostTensor.Normal("key", ElementType.Float32, [2, 3, Keys, 5], 1);
        using var value = HostTensor.Normal("value", ElementType.Float32, [2, Keys, 3, 7], 2);
        using var device = new HostMemoryDevice();
        var plan = new ShardPlan(_shape, ShardLayout.Contiguous.PagesOf(0, 1, Keys), ElementType.Float32, false);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(
            () => KeyValueLoader.Load(device, plan, key.View, value.View, NonFinitePolicy.Error));

        Assert.Contains("key is [2, 3, 1100, 5]", error.Message, StringComparison.Ordinal);
        Assert.Contains("[2, 1100, 3, 5]", error.Message, StringComparison.Ordinal);
        Assert.Equal(0, device.Allocations);
    }

    private static IEnumerable<(KeyPage Page, int Head, int Index)> RowsOf(ShardPlan plan) =>
        from page in plan.Pages
        from head in Enumerable.Range(0, plan.Shape.KvHeads)
        from index in Enumerable.Range(0, page.Span.Count)
        select (page, head, index);

    private static IEnumerable<double> Row(float[] contents, long offset, int row, int dim) =>
        contents.Skip((int)offset + (row * dim)).Take(dim).Select(x => (double)x);

    private static double[][] Stored(KeyValueShard shard, long offset, KeyPage page, int head, int dim) =>
        [.. Enumerable.Range(0, page.Span.Count).Select(index => Enumerable.Range(0, dim).Select(d => ElementConversion.ToDouble(
            shard.Contents.Slice(offset + (((head * page.Span.Count) + index) * dim) + d, 1).AsSpan<byte>(), shard.Plan.Type)).ToArray())];

    private static double Nearest(double exact, ElementType type) => type switch
    {
        ElementType.Float32 => (float)exact,
        ElementType.Float16 => (double)(Half)exact,
        ElementType.Float8E4M3 => Nearest(exact, -6, 3),
        _ => Nearest(exact, -126, 7),
    };

    private static double Nearest(double exact, int leastExponent, int fractionBits)
    {
        double unit = exact == 0 ? 1 : Math.ScaleB(1, Math.Max(Math.ILogB(exact), leastExponent) - fractionBits);
        return Math.Round(exact / unit, MidpointRounding.ToEven) * unit;
    }
}
