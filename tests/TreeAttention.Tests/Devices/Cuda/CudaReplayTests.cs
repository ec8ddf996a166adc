using System;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Work of a CUDA device that is captured as a graph and launched again.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaReplayTests
{
    private static CpuCase Case(int seed) => new CpuCase
    {
        Shape = new(2, 2, 1300, 4, 2, 32, 24), // three pages: several splits, and a merge
        Type = ElementType.BFloat16,
        Options = new() { Causal = true },
    }.Fill(seed);

    [Fact]
    public void A_replay_has_the_bits_of_direct_launches_and_sees_what_the_queries_are_by_then()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var call = new DeviceCall(Case(1), device);
        using var other = new DeviceCall(Case(1).Change(inputs => inputs.Query.AsSpan(0, 100).Fill(100)), device);
        PartialResult direct = call.Attend();
        PartialResult changed = other.Attend();
        using IReplay replay = device.Capture(() => device.Attend(Case(1).Problem, call.Queries, call.Shard, call.Into));

        device.Clear(call.Into);
        replay.Launch();
        PartialResult again = DeviceCall.Read(device, call.Into);
        device.Copy(other.Queries.Values, call.Queries.Values);
        replay.Launch();
        PartialResult seen = DeviceCall.Read(device, call.Into);

        Assert.Equal(direct.Output.Select(BitConverter.SingleToInt32Bits), again.Output.Select(BitConverter.SingleToInt32Bits));
        Assert.Equal(changed.Output.Select(BitConverter.SingleToInt32Bits), seen.Output.Select(BitConverter.SingleToInt32Bits));
        Assert.NotEqual(direct.Output, changed.Output);
    }

    [Fact]
    public void What_no_capture_can_hold_is_refused_and_the_device_goes_on()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var host = new HostMemory(256, ElementType.Float32);
        Region region = device.Allocate(256, ElementType.Float32);

        InvalidOperationException allocation = Assert.Throws<InvalidOperationException>(
            () => device.Capture(() => device.Allocate(64 << 20, ElementType.Float32)));
        InvalidOperationException copy = Assert.Throws<InvalidOperationException>(() => device.Capture(() => device.Copy(host.Region, region)));
        InvalidOperationException wait = Assert.Throws<InvalidOperationException>(() => device.Capture(device.Synchronize));

        Assert.Contains("An allocation cannot be captured", allocation.Message, StringComparison.Ordinal);
        Assert.Contains("ordinary host memory", copy.Message, StringComparison.Ordinal);
        Assert.Contains("A wait", wait.Message, StringComparison.Ordinal);
        device.Copy(host.Region, region);
        device.Synchronize();
    }

    [Fact]
    public void Memory_that_a_replay_works_on_is_given_to_nobody_else_until_it_is_gone()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        Region target = device.Allocate(1000, ElementType.Float32);
        Region source = device.Allocate(1000, ElementType.Float32);
        IReplay replay = device.Capture(() => device.Copy(source, target));
        device.Free(target);

        Region during = device.Allocate(1000, ElementType.Float32);
        replay.Dispose();
        Region after = device.Allocate(1000, ElementType.Float32);

        Assert.NotEqual(target.Address, during.Address);
        Assert.Equal(target.Address, after.Address);
    }

    [Theory]
    [InlineData(AttentionAlgorithm.Single, ReductionKind.Auto)]
    [InlineData(AttentionAlgorithm.Tree, ReductionKind.Auto)]
    [InlineData(AttentionAlgorithm.Tree, ReductionKind.Lanes)]
    [InlineData(AttentionAlgorithm.Ring, ReductionKind.Auto)]
    public void A_step_over_the_same_memory_is_launched_whole_with_the_bits_of_the_first(AttentionAlgorithm algorithm, ReductionKind reduction)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        bool lanes = reduction == ReductionKind.Lanes;
        CpuCase inputs = new CpuCase { Shape = Case(1).Shape, Type = ElementType.Float32, Layout = lanes ? ShardLayout.Lanes : ShardLayout.Contiguous }.Fill();
        using var call = new DeviceCall(inputs, device);
        using var step = AloneStep.Create(device, inputs, call.Shard.Limits, new AttentionPlan(algorithm, reduction, QueryPlacement.Replicated));
        PartialResult first = DeviceCall.Read(device, step.Run(call.Queries, call.Shard));
        PartialResult second = DeviceCall.Read(device, step.Run(call.Queries, call.Shard));
        (long launches, long reserved) = (device.Launches, device.ReservedBytes);
        long managed = GC.GetAllocatedBytesForCurrentThread();

        PartialAttention state = step.Run(call.Queries, call.Shard);

        long allocated = GC.GetAllocatedBytesForCurrentThread() - managed;
        Assert.Equal((launches, reserved, 0), (device.Launches, device.ReservedBytes, allocated));
        PartialResult third = DeviceCall.Read(device, state);
        Assert.Equal(first.Output.Select(BitConverter.SingleToInt32Bits), second.Output.Select(BitConverter.SingleToInt32Bits));
        Assert.Equal(first.Output.Select(BitConverter.SingleToInt32Bits), third.Output.Select(BitConverter.SingleToInt32Bits));
        Assert.InRange(third.ErrorAgainst(inputs.Expected()), 0, 1e-5);
        Assert.True(step.Times.Compute > TimeSpan.Zero);
    }

    [Fact]
    public void A_step_with_other_queries_begins_anew()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = Case(1);
        using var call = new DeviceCall(inputs, device);
        using var other = new DeviceCall(Case(2), device);
        using var step = AloneStep.Create(
            device, inputs, call.Shard.Limits, new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Auto, QueryPlacement.Replicated));
        for (int run = 0; run < 3; run++)
        {
            step.Run(call.Queries, call.Shard);
        }

        PartialResult moved = DeviceCall.Read(device, step.Run(other.Queries, other.Shard));

        Assert.Equal(other.Attend().Output, moved.Output);
    }
}
