using System;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>What a CUDA device does beside attention: memory, copies, states, faults.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaDeviceTests
{
    private const int Rows = 7; // no multiple of the four rows of a block
    private const int ValueDim = 37; // no multiple of a warp

    [Fact]
    public void Memory_is_zeroed_and_used_again_without_asking_the_driver()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        Region first = device.Allocate(1000, ElementType.Float32);
        Fill(device, first, 5);
        device.Free(first);
        long reserved = device.ReservedBytes;

        Region second = device.Allocate(1004, ElementType.Float32);

        Assert.Equal(0, Floats(device, second).Max(MathF.Abs));
        Assert.Equal(reserved, device.ReservedBytes);
        Assert.Equal(1004, device.Memory.Bytes);
        device.Free(second);
        Assert.Equal(0, device.Memory.Bytes);
        Assert.Throws<ArgumentException>(() => device.Free(second));
    }

    [Fact]
    public void A_repeated_call_asks_the_driver_for_nothing()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = new CpuCase { Shape = new(1, 1, 1200, 2, 1, 32, 32), Type = ElementType.BFloat16 }.Fill();
        using var call = new DeviceCall(inputs, device);
        PartialResult first = call.Attend();
        (long reserved, long bytes) = (device.ReservedBytes, device.Memory.Bytes);

        PartialResult second = call.Attend();

        Assert.Equal((reserved, bytes), (device.ReservedBytes, device.Memory.Bytes));
        Assert.Equal(first.Output, second.Output);
    }

    [Theory]
    [InlineData(nameof(MemoryPlace.Host), nameof(MemoryPlace.Host))]
    [InlineData(nameof(MemoryPlace.Host), nameof(MemoryPlace.Pinned))]
    [InlineData(nameof(MemoryPlace.Host), nameof(MemoryPlace.Device))]
    [InlineData(nameof(MemoryPlace.Pinned), nameof(MemoryPlace.Host))]
    [InlineData(nameof(MemoryPlace.Pinned), nameof(MemoryPlace.Pinned))]
    [InlineData(nameof(MemoryPlace.Pinned), nameof(MemoryPlace.Device))]
    [InlineData(nameof(MemoryPlace.Device), nameof(MemoryPlace.Host))]
    [InlineData(nameof(MemoryPlace.Device), nameof(MemoryPlace.Pinned))]
    [InlineData(nameof(MemoryPlace.Device), nameof(MemoryPlace.Device))]
    public void A_copy_between_any_two_places_arrives(string from, string to)
    {
        const long Bytes = (4 << 20) + 12; // more than the staging memory holds
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var source = new HostMemory(Bytes, ElementType.Float32);
        using var target = new HostMemory(Bytes, ElementType.Float32);
        Region at = Place(device, Enum.Parse<MemoryPlace>(from), source);
        Region into = Place(device, Enum.Parse<MemoryPlace>(to), target);
        Fill(device, at, 3);

        device.Copy(at, into);
        device.Synchronize();

        Assert.All(Floats(device, into), value => Assert.Equal(3, value));
    }

    [Fact]
    public void A_merge_has_the_bits_of_the_host_and_of_the_merge_the_other_way_round()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var hosts = new HostStates(2, Rows, ValueDim, seed: 3);
        PartialAttention left = Upload(device, hosts.States[0]);
        PartialAttention right = Upload(device, hosts.States[1]);
        PartialAttention other = Upload(device, hosts.States[1]);

        device.Merge(other, left);
        device.Merge(left, right);

        PartialResult merged = DeviceCall.Read(device, left);
        PartialResult exchanged = DeviceCall.Read(device, other);
        Assert.Equal(merged.Output.Select(BitConverter.SingleToInt32Bits), exchanged.Output.Select(BitConverter.SingleToInt32Bits));
        Assert.Equal(merged.Sum, exchanged.Sum);
        hosts.States[0].MergeFrom(hosts.States[1]);
        Assert.InRange(merged.ErrorAgainst(PartialResult.Of(hosts.States[0])), 0, 1e-6);
    }

    [Fact]
    public void A_state_in_host_memory_merges_too()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var hosts = new HostStates(2, Rows, ValueDim, seed: 4);
        PartialAttention state = Upload(device, hosts.States[0]);

        device.Merge(state, hosts.States[1]);

        hosts.States[0].MergeFrom(hosts.States[1]);
        Assert.InRange(DeviceCall.Read(device, state).ErrorAgainst(PartialResult.Of(hosts.States[0])), 0, 1e-6);
    }

    [Fact]
    public void Weighing_and_its_inverse_give_the_state_back()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        using var hosts = new HostStates(1, Rows, ValueDim, seed: 5);
        PartialAttention state = Upload(device, hosts.States[0]);
        Region top = device.Allocate(Rows * sizeof(float), ElementType.Float32);
        Region numerator = device.Allocate(Rows * ValueDim * sizeof(float), ElementType.Float32);
        Region denominator = device.Allocate(Rows * sizeof(float), ElementType.Float32);
        device.Copy(state.MaxRegion, top);

        device.Weigh(state, top, 0.25f, numerator, denominator);
        device.Clear(state);
        Assert.Equal(float.NegativeInfinity, DeviceCall.Read(device, state).Max[0]);
        device.Unweigh(top, 0.25f, numerator, denominator, state);

        Assert.InRange(DeviceCall.Read(device, state).ErrorAgainst(PartialResult.Of(hosts.States[0])), 0, 1e-6);
    }

    [Fact]
    public void More_memory_than_there_is_ends_with_71_and_both_sizes()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();

        FaultException fault = Assert.Throws<FaultException>(() => device.Allocate(1L << 40, ElementType.Byte));

        Assert.Equal(FaultCode.OutOfMemory, fault.Code);
        Assert.Contains("1,099,511,627,776 bytes", fault.Message, StringComparison.Ordinal);
        Assert.Contains("the GPU has", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_device_that_failed_stays_failed_and_says_so_with_202()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice(EmulatedCuda.Breakable);
        CudaDevice other = EmulatedCuda.CreateDevice(EmulatedCuda.Breakable);
        Region block = other.Allocate(256, ElementType.Float32);
        Region wide = new(block.Address, 264, ElementType.Float32, MemoryPlace.Device);
        other.Clear(new PartialAttention(wide, 6, 9)); // 66 floats in memory of 64
        other.Synchronize();
        other.Dispose(); // gives the memory back: the driver sees that it was written past its end

        FaultException first = Assert.Throws<FaultException>(device.Synchronize);
        FaultException second = Assert.Throws<FaultException>(() => device.Allocate(1 << 20, ElementType.Byte));

        Assert.Equal(FaultCode.DeviceFault, first.Code);
        Assert.Equal(FaultCode.DeviceFault, second.Code);
        Assert.Contains("CUDA_ERROR_LAUNCH_FAILED", first.Message, StringComparison.Ordinal);
        Assert.Contains("DeviceKind.Cpu", first.Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(700, "CUDA_ERROR_ILLEGAL_ADDRESS")]
    [InlineData(719, "CUDA_ERROR_LAUNCH_FAILED")]
    public void A_fault_is_named_with_its_kernel_when_work_is_awaited_and_sticks_to_launches_copies_and_graphs(int code, string name)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice(EmulatedCuda.Breakable);
        using var host = new HostMemory(256, ElementType.Float32);
        var state = new PartialAttention(device.Allocate(6 * 11 * sizeof(float), ElementType.Float32), 6, 9);
        device.Clear(state);
        using IReplay replay = device.Capture(() => device.Clear(state));
        device.Synchronize();
        EmulatedCuda.PlantFault(EmulatedCuda.Breakable, code);
        device.Clear(state);

        FaultException[] faults =
        [
            Assert.Throws<FaultException>(device.Synchronize),
            Assert.Throws<FaultException>(() => device.Clear(state)),
            Assert.Throws<FaultException>(() => device.Copy(host.Region, state.Region.Slice(0, 64))),
            Assert.Throws<FaultException>(replay.Launch),
        ];

        Assert.All(faults, fault => Assert.Equal(FaultCode.DeviceFault, fault.Code));
        Assert.All(faults, fault => Assert.Contains($"{name} ({code})", fault.Message, StringComparison.Ordinal));
        Assert.All(faults, fault => Assert.Contains("clear_state", fault.Message, StringComparison.Ordinal));
        Assert.All(faults, fault => Assert.Contains("DeviceKind.Cpu", fault.Message, StringComparison.Ordinal));
    }

    private static PartialAttention Upload(CudaDevice device, PartialAttention state)
    {
        Region region = device.Allocate(state.Region.Bytes, ElementType.Float32);
        device.Copy(state.Region, region);
        return new PartialAttention(region, state.Rows, state.ValueDim);
    }

    private static Region Place(CudaDevice device, MemoryPlace place, HostMemory host) => place switch
    {
        MemoryPlace.Host => host.Region,
        MemoryPlace.Pinned => device.AllocatePinned(host.Region.Bytes, ElementType.Float32),
        _ => device.Allocate(host.Region.Bytes, ElementType.Float32),
    };

    private static void Fill(CudaDevice device, Region region, float value)
    {
        using var host = new HostMemory(region.Bytes, ElementType.Float32);
        host.Region.AsSpan<float>().Fill(value);
        device.Copy(host.Region, region);
    }

    private static float[] Floats(CudaDevice device, Region region)
    {
        using var host = new HostMemory(region.Bytes, ElementType.Float32);
        device.Copy(region, host.Region);
        return host.Region.AsSpan<float>().ToArray();
    }
}
