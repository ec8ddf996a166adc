using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Prefill on GPUs, in-process and over NCCL: the same attention, and in the cache the bits that a CPU stores.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaPrefillTests
{
    private static readonly PrefillCase _prompts = new("cuda")
    {
        Lengths = [530, 0, 70],
        Padding = [0, 1, 3],
        Layers = 2,
        HeadDim = 16,
        ValueDim = 8,
        Type = ElementType.BFloat16,
        Rotary = new RotaryOptions(16),
    };

    public static TheoryData<PrefillMethod> Methods => [.. Enum.GetValues<PrefillMethod>()];

    [Theory, MemberData(nameof(Methods))]
    public void GPUs_that_are_staged_through_the_host_prefill_a_cache(PrefillMethod method)
    {
        var results = new PrefillResults(_prompts);
        using var group = InProcessGroup.Create(2);
        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice(rank);
            using var staged = new DeviceTransport(group.Transports[rank], device);
            Prefill(new RankContext(staged, device, group.Controls[rank]), method, results);
        });

        results.Check(1);
    }

    [Theory, MemberData(nameof(Methods))]
    public void GPUs_that_are_joined_by_NCCL_prefill_a_cache(PrefillMethod method)
    {
        var results = new PrefillResults(_prompts);
        NcclRanks.Run(3, (transport, device, control) => Prefill(new RankContext(transport, device, control), method, results));

        results.Check(1);
    }

    private static void Prefill(RankContext context, PrefillMethod method, PrefillResults results)
    {
        using ShardedKvCache cache = _prompts.NewCache(context);
        using ShardedKvCache appended = _prompts.NewCache(context);
        using var step = PrefillStep.Create(context, cache, _prompts.Options(method));
        _prompts.Run(step, 0);
        (float[] output, float[] lse) = _prompts.Run(step, 1);
        _prompts.Append(appended, 1);
        results.Add(step.Tokens, output, lse);
        float[] key = new float[32];
        float[] value = new float[16];
        float[] expectedKey = new float[32];
        float[] expectedValue = new float[16];
        foreach ((int row, int position) in ((int, int)[])[(0, 0), (0, 511), (0, 512), (0, 529), (2, 69)])
        {
            Assert.Equal(appended.TryRead(1, row, position, expectedKey, expectedValue), cache.TryRead(1, row, position, key, value));
            Assert.Equal(expectedKey, key);
            Assert.Equal(expectedValue, value);
        }
    }
}
