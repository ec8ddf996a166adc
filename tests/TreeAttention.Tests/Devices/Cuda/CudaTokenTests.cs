using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>What the CUDA device stores of new tokens and makes of queries, against the CPU: the same bits; and steps over such caches.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaTokenTests
{
    private const int KvHeads = 3;
    private const int Slots = 2;

    private static readonly ElementType[] _types = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3, ElementType.Int8];
    private static readonly bool[] _either = [false, true];

    public static MatrixTheoryData<ElementType, bool, bool> Storage => new(_types, _either, _either);

    public static TheoryData<bool, int> Rotations => new() { { false, 22 }, { true, 22 }, { false, 40 }, { true, 2 } };

    public static MatrixTheoryData<ElementType, bool> Steps => new([ElementType.Float32, ElementType.Float16, ElementType.BFloat16], _either);

    [Theory, MemberData(nameof(Storage))]
    public void Stored_tokens_have_the_bits_and_limits_that_the_CPU_gives_them(ElementType type, bool isInterleaved, bool insideKeys)
    {
        using var cpu = new CpuDevice(1);
        using CudaDevice cuda = EmulatedCuda.CreateDevice();

        (byte[] expected, PageLimits[] limits) = Append(cpu, type, isInterleaved, insideKeys);
        (byte[] stored, PageLimits[] grown) = Append(cuda, type, isInterleaved, insideKeys);

        Assert.Equal(expected, stored);
        Assert.Contains(stored, element => element != 0);
        Assert.All(limits.Zip(grown), pair =>
        {
            Assert.Equal(pair.First.LargestValue, pair.Second.LargestValue);
            Assert.InRange(pair.Second.LargestKeyNorm, pair.First.LargestKeyNorm, pair.First.LargestKeyNorm * 1.000001f);
        });
        Assert.Contains(limits, one => one.LargestKeyNorm > 0);
    }

    [Theory, MemberData(nameof(Rotations))]
    public void Arranged_queries_have_the_bits_that_the_CPU_gives_them(bool isInterleaved, int rotaryDim)
    {
        var shape = new AttentionShape(2, 3, 1, 5, 1, 40, 40);
        float[] queries = Numbers(2 * 3 * 5 * 40, 5);
        var angles = new RotaryAngles(new RotaryOptions(rotaryDim, Interleaved: isInterleaved));
        angles.Take([700, 701, 702, 5, 6, 7]);
        using var cpu = new CpuDevice(1);
        using CudaDevice cuda = EmulatedCuda.CreateDevice();

        float[] expected = Arrange(cpu, shape, queries, angles);
        float[] arranged = Arrange(cuda, shape, queries, angles);

        Assert.Equal(expected, arranged);
        Assert.NotEqual(Arrange(cpu, shape, queries, null), arranged);
        Assert.Equal(Arrange(cpu, shape, queries, null), Arrange(cuda, shape, queries, null));
    }

    [Theory, MemberData(nameof(Steps))]
    public void A_step_over_a_cache_is_attention_over_all_that_it_holds(ElementType type, bool isInterleaved)
    {
        DecodeCase decode = Case($"cuda {type} {isInterleaved}", type, isInterleaved);

        Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, 290);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Fact]
    public void Tokens_of_device_memory_are_attended_to_like_those_of_the_host()
    {
        DecodeCase decode = Case("cuda loud", ElementType.Float32, false, size: 60);

        Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            cache.Append(0, new float[KvHeads * decode.HeadDim], decode.Values(0, 0, 1));
            step.Attend(0, decode.Query, new float[decode.Query.Length], new float[decode.Query.Length / decode.HeadDim]);
            cache.Release(0);
            AppendFromDevice(context.Device, cache, decode);
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Fact]
    public void A_slot_that_held_loud_keys_is_computed_fast_again_for_the_next_row_that_gets_it()
    {
        DecodeCase decode = Case("cuda slots", ElementType.Float32, false);
        float[] key = decode.Keys(0, 0, 20).ToArray();
        float[] value = decode.Values(0, 0, 20).ToArray();
        float[] loud = [.. key.Select(x => x * 1000)];

        Run(1, context =>
        {
            float[] fresh = AttendTo(context, decode, cache => cache.Append(0, key, value));
            float[] again = AttendTo(context, decode, cache =>
            {
                cache.Append(0, loud, value);
                cache.Release(0);
                cache.Append(0, key, value);
            });
            float[] precise = AttendTo(context, decode, cache =>
            {
                cache.Append(0, key, value);
                cache.Append(0, loud.AsSpan(0, 2 * decode.KvHeads * decode.HeadDim), value.AsSpan(0, 2 * decode.KvHeads * decode.ValueDim));
                cache.Truncate(0, 20);
            });

            Assert.Equal(fresh, again);
            Assert.NotEqual(fresh, precise);
            Assert.All(fresh.Zip(precise), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
        });
    }

    private static float[] AttendTo(RankContext context, DecodeCase decode, Action<ShardedKvCache> fill)
    {
        using var cache = new ShardedKvCache(context, decode.CacheOptions);
        using var step = new DecodeStep(context, cache, decode.DecodeOptions());
        fill(cache);
        float[] output = new float[decode.QueryLength * decode.QueryHeads * decode.ValueDim];
        step.Attend(0, decode.Query, output, new float[decode.QueryLength * decode.QueryHeads]);
        return output;
    }

    private static DecodeCase Case(string name, ElementType type, bool isInterleaved, float size = 2) => new(name)
    {
        Before = [20],
        Padding = [3],
        KvHeads = KvHeads,
        QueryHeads = 2 * KvHeads,
        ValueDim = 16,
        NewTokens = 2,
        QueryLength = 2,
        Type = type,
        Size = size,
        Rotary = new RotaryOptions(12, Interleaved: isInterleaved),
        Options = new AttentionOptions { Causal = true },
    };

    private static void Run(int ranks, Action<RankContext> body)
    {
        _ = EmulatedCuda.Platform;
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice();
            using var transport = new DeviceTransport(group.Transports[rank], device);
            body(new RankContext(transport, device, group.Controls[rank]));
        });
    }

    private static void AppendFromDevice(IDevice device, ShardedKvCache cache, DecodeCase decode)
    {
        cache.PadLeft(0, decode.Padding[0]);
        Region key = Upload(device, decode.Keys(0, 0, decode.Before[0]));
        Region value = Upload(device, decode.Values(0, 0, decode.Before[0]));
        cache.Append(0, [0], key, value);
        device.Free(key);
        device.Free(value);
    }

    // Five tokens, of which another rank owns two, in two slots.
    private static (byte[] Stored, PageLimits[] Limits) Append(IDevice device, ElementType type, bool isInterleaved, bool insideKeys)
    {
        (int headDim, int valueDim) = (40, 24);
        var shape = new AttentionShape(1, 1, Slots * PageSpan.Keys, KvHeads, KvHeads, headDim, valueDim);
        long keys = (long)KvHeads * PageSpan.Keys * headDim;
        long values = insideKeys ? 0 : (long)KvHeads * PageSpan.Keys * valueDim;
        var run = KeyRun.Contiguous(0, Slots * PageSpan.Keys);
        var plan = new ShardPlan(shape, [.. Enumerable.Range(0, Slots).Select(slot => new PageSpan(run, slot * PageSpan.Keys, PageSpan.Keys))], type, insideKeys);
        var shard = new KeyValueShard(plan, device.Allocate(plan.Bytes, type), [])
        {
            Growing = device.Allocate(Slots * KvHeads * 2 * sizeof(float), ElementType.Float32),
        };
        TokenPlace At(int slot, int index)
        {
            long key = (slot * keys) + (index * headDim);
            return new TokenPlace(key, insideKeys ? key : (Slots * keys) + (slot * values) + (index * valueDim), slot);
        }

        TokenPlace[] places = [At(0, 511), TokenPlace.Elsewhere, At(1, 0), At(1, 1), TokenPlace.Elsewhere];
        var angles = new RotaryAngles(new RotaryOptions(30, Interleaved: isInterleaved));
        angles.Take([511, 512, 512, 513, 9]);
        Region key = Upload(device, Numbers(places.Length * KvHeads * headDim, 1));
        Region value = insideKeys ? Region.Empty : Upload(device, Numbers(places.Length * KvHeads * valueDim, 2));
        device.Append(new TokenBlock(key, value, places, places.Length, angles), shard);
        byte[] stored = Download<byte>(device, shard.Contents);
        PageLimits[] limits = Download<PageLimits>(device, shard.Growing);
        new List<Region> { key, shard.Contents, shard.Growing }.ForEach(device.Free);
        if (!insideKeys)
        {
            device.Free(value);
        }

        return (stored, limits);
    }

    private static float[] Arrange(IDevice device, AttentionShape shape, float[] queries, RotaryAngles? angles)
    {
        Region given = Upload(device, queries);
        var block = new QueryBlock(device.Allocate(given.Bytes, ElementType.Float32), [.. Enumerable.Range(0, shape.QueryLength)]);
        device.ArrangeQueries(shape, given, angles, block);
        float[] arranged = Download<float>(device, block.Values);
        device.Free(given);
        device.Free(block.Values);
        return arranged;
    }

    private static Region Upload(IDevice device, ReadOnlySpan<float> numbers)
    {
        using var host = new HostMemory((long)numbers.Length * sizeof(float), ElementType.Float32);
        numbers.CopyTo(host.Region.AsSpan<float>());
        Region region = device.Allocate(host.Region.Bytes, ElementType.Float32);
        device.Copy(host.Region, region);
        return region;
    }

    private static T[] Download<T>(IDevice device, Region region)
        where T : unmanaged
    {
        using var host = new HostMemory(region.Bytes, region.Type);
        device.Copy(region, host.Region);
        return host.Region.AsSpan<T>().ToArray();
    }

    private static float[] Numbers(int count, int seed)
    {
        var random = new Random(seed);
        return [.. Enumerable.Range(0, count).Select(_ => (float)((random.NextDouble() - 0.5) * 10))];
    }
}
