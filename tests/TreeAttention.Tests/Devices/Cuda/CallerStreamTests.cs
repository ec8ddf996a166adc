using System;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Steps over a caller's device memory in the order of the caller's stream; streams of the emulation run in any order that nothing forbids.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CallerStreamTests
{
    public static MatrixTheoryData<ElementType, int> Calls => new([ElementType.Float32, ElementType.Float16, ElementType.BFloat16], [1, 2]);

    [Theory, MemberData(nameof(Calls))]
    public void A_step_comes_after_what_the_callers_stream_holds_and_before_what_it_gets(ElementType type, int ranks)
    {
        DecodeCase decode = Case($"stream {type}", type);

        NcclRanks.Run(ranks, (transport, device, control) =>
        {
            var context = new RankContext(transport, device, control);
            using ShardedKvCache cache = Filled(context, decode), other = Filled(context, decode);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            using var hostStep = new DecodeStep(context, other, decode.DecodeOptions());
            (float[] expected, float[] expectedLse) = RunOnHost(decode, hostStep, type);
            using var caller = new CallerStream(device);
            (float[] key, float[] value) = decode.LastTokens();
            DeviceTensor query = caller.Arrives(decode.Query, type), keys = caller.Arrives(key, type), values = caller.Arrives(value, type);
            DeviceTensor output = caller.Room(expected.Length, type), lse = caller.Room(expectedLse.Length, ElementType.Float32);
            DeviceTensor left = caller.Room(expected.Length, type), leftLse = caller.Room(expectedLse.Length, ElementType.Float32);

            step.Run(0, query, keys, values, output, lse, caller.Handle);
            bool hasWaited = CallerStream.IsWritten(output);
            caller.Copy(output, left);
            caller.Copy(lse, leftLse);

            Assert.False(hasWaited);
            AssertNear(Rounded(expected, type), caller.Read(left), type == ElementType.BFloat16 ? 8e-3f : type == ElementType.Float16 ? 1e-3f : 1e-6f);
            AssertNear(expectedLse, caller.Read(leftLse), 1e-6f);
            Assert.Equal(decode.Longest, cache.LengthOf(0));
        });
    }

    [Fact]
    public void A_step_that_does_not_fit_stores_nothing_and_the_next_one_works()
    {
        DecodeCase decode = Case("misfits", ElementType.Float32);

        NcclRanks.Run(1, (transport, device, control) =>
        {
            var context = new RankContext(transport, device, control);
            using ShardedKvCache cache = Filled(context, decode);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            using var caller = new CallerStream(device);
            (float[] key, float[] value) = decode.LastTokens();
            DeviceTensor query = caller.Arrives(decode.Query, ElementType.Float32);
            DeviceTensor keys = caller.Arrives(key, ElementType.Float32), values = caller.Arrives(value, ElementType.Float32);
            DeviceTensor output = caller.Room(decode.Query.Length, ElementType.Float32), lse = caller.Room(12, ElementType.Float32);

            Assert.Throws<ShapeMismatchException>(() => step.Run(0, query with { Count = 5 }, keys, values, output, lse, caller.Handle));
            Assert.Throws<ShapeMismatchException>(() => step.Run(0, query, keys, values, output, lse with { Type = ElementType.Float16 }, caller.Handle));
            Assert.Throws<ShapeMismatchException>(() => step.Run(0, query, keys, values, output with { Address = 0 }, lse, caller.Handle));
            Assert.Throws<ShapeMismatchException>(() => step.Run(0, query with { Type = ElementType.Int32 }, keys, values, output, lse, caller.Handle));
            Assert.Equal(decode.Before[0], cache.LengthOf(0));
            step.Run(0, query, keys, values, output, lse, caller.Handle);
            FaultException full = Assert.Throws<FaultException>(() => step.Run(0, query, keys, values, output, lse, caller.Handle));

            Assert.Equal((FaultCode.OutOfMemory, true), (full.Code, full.IsAgreed));
            VerificationReport report = decode.Check(caller.Read(output), caller.Read(lse));
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Theory, InlineData(ElementType.Float32), InlineData(ElementType.BFloat16)]
    public void On_a_CPU_the_addresses_are_the_processs_and_there_is_no_stream(ElementType type)
    {
        DecodeCase decode = Case($"cpu {type}", type);

        CacheRanks.Run(2, context =>
        {
            using ShardedKvCache cache = Filled(context, decode), other = Filled(context, decode);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            using var hostStep = new DecodeStep(context, other, decode.DecodeOptions());
            (float[] expected, float[] expectedLse) = RunOnHost(decode, hostStep, type);
            (float[] key, float[] value) = decode.LastTokens();
            using HostMemory queries = Stored(decode.Query, type), keys = Stored(key, type), values = Stored(value, type);
            using HostMemory output = Stored(new float[expected.Length], type), lse = Stored(new float[expectedLse.Length], ElementType.Float32);

            void Run(nint stream) => step.Run(0, Of(queries), Of(keys), Of(values), Of(output), Of(lse), stream);
            Assert.Throws<ArgumentException>(() => Run(77));
            Run(0);

            Assert.Equal(Rounded(expected, type), Numbers(output.Region));
            Assert.Equal(expectedLse, Numbers(lse.Region));
        });
    }

    [Theory, InlineData(false, LogarithmBase.Natural), InlineData(true, LogarithmBase.Natural), InlineData(true, LogarithmBase.Two)]
    public void A_result_made_on_the_device_is_that_of_the_host_to_one_rounding(bool hasSinks, LogarithmBase lseBase)
    {
        // Rows without keys, with a huge maximum (2^127 stands for 2^400), a loud one, NaN, and queries past the end of their row.
        var shape = new AttentionShape(2, 3, 8, 5, 5, 8, 33);
        float[] sinks = [float.NegativeInfinity, 0.5f, 40, -3, float.NaN];
        using var states = new HostStates(1, 2 * 5 * 3, 33, seed: 4);
        PartialAttention state = states.States[0];
        (state.Max[0], state.Max[3], state.Max[4], state.Max[7]) = (1.6e38f, -2e37f, 300, float.NaN);
        var problem = new AttentionProblem(shape, new AttentionOptions { Sinks = hasSinks ? sinks : null, QueryLengths = [3, 2], LseBase = lseBase });
        float[] expected = new float[2 * 3 * 5 * 33], expectedLse = new float[2 * 5 * 3];
        AttentionEdge.Finish(problem, [0, 1, 2], state, expected, expectedLse);
        using CudaDevice device = EmulatedCuda.CreateDevice();
        Region on = device.Allocate(state.Region.Bytes, ElementType.Float32);
        device.Copy(state.Region, on);
        Region output = device.Allocate(expected.Length * sizeof(float), ElementType.Float32);
        Region lse = device.Allocate(expectedLse.Length * sizeof(float), ElementType.Float32);

        device.Finish(problem, [0, 1, 2], new PartialAttention(on, state.Rows, 33), output, lse);

        AssertNear(expected, Download(device, output), 1e-7f);
        AssertNear(expectedLse, Download(device, lse), 1e-7f);
        Assert.Contains(expectedLse, float.IsNegativeInfinity);
        Assert.Contains(expectedLse, number => number > 1e37f);
    }

    private static DecodeCase Case(string name, ElementType type) => new(name)
    {
        Before = [520, 30],
        NewTokens = 2,
        QueryLength = 2,
        QueryHeads = 3,
        KvHeads = 1,
        Type = type,
        Rotary = new RotaryOptions(8),
        Options = new AttentionOptions { Causal = true, Sinks = [0.3f, -1, 2] },
    };

    private static ShardedKvCache Filled(RankContext context, DecodeCase decode)
    {
        var cache = new ShardedKvCache(context, decode.CacheOptions);
        decode.Fill(cache, 260);
        return cache;
    }

    // The same step over spans, with the numbers that the type can hold.
    private static (float[] Output, float[] Lse) RunOnHost(DecodeCase decode, DecodeStep step, ElementType type)
    {
        float[] output = new float[decode.Query.Length], lse = new float[output.Length / decode.ValueDim];
        (float[] key, float[] value) = decode.LastTokens();
        step.Run(0, Rounded(decode.Query, type), Rounded(key, type), Rounded(value, type), output, lse);
        return (output, lse);
    }

    private static HostMemory Stored(float[] numbers, ElementType type)
    {
        var memory = new HostMemory((long)numbers.Length * type.SizeInBytes(), type);
        ElementConversion.FromFloat(numbers, type, memory.Region.AsSpan<byte>());
        return memory;
    }

    private static DeviceTensor Of(HostMemory memory) => new(memory.Region.Address, memory.Region.Count, memory.Region.Type);

    private static float[] Numbers(Region region)
    {
        float[] numbers = new float[region.Count];
        ElementConversion.ToFloat(region.AsSpan<byte>(), region.Type, numbers);
        return numbers;
    }

    private static float[] Rounded(float[] numbers, ElementType type)
    {
        using HostMemory stored = Stored(numbers, type);
        return Numbers(stored.Region);
    }

    private static float[] Download(CudaDevice device, Region region)
    {
        using var memory = new HostMemory(region.Bytes, region.Type);
        device.Copy(region, memory.Region);
        return Numbers(memory.Region);
    }

    private static void AssertNear(float[] expected, float[] actual, float share)
    {
        Assert.Equal(expected.Length, actual.Length);
        Assert.All(expected.Zip(actual), pair => Assert.True(
            pair.First.Equals(pair.Second) || Math.Abs(pair.First - pair.Second) <= (share * Math.Abs(pair.First)) + 1e-7f, $"{pair.First} and {pair.Second}"));
    }
}
