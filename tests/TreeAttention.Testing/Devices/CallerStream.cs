using System;
using System.Collections.Generic;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Cuda;
using Xunit;

namespace TreeAttention.Testing.Devices;

/// <summary>A caller of the library with a stream of its own on the emulated GPU, on which its tensors arrive late and results leave.</summary>
internal sealed unsafe class CallerStream : IDisposable
{
    private readonly CudaDevice _device;
    private readonly List<Region> _memory = [];

    internal CallerStream(CudaDevice device)
    {
        _device = device;
        device.EnterStream();
        nint stream;
        Assert.Equal(CUresult.CUDA_SUCCESS, CudaDriver.cuStreamCreate(&stream, 1));
        Handle = stream;
    }

    internal nint Handle { get; }

    /// <summary>A tensor whose numbers are there when the stream has come so far.</summary>
    internal DeviceTensor Arrives(float[] numbers, ElementType type)
    {
        using var host = new HostMemory((long)numbers.Length * type.SizeInBytes(), type);
        ElementConversion.FromFloat(numbers, type, host.Region.AsSpan<byte>());
        Region source = Allocate(host.Region.Bytes, type);
        _device.Copy(host.Region, source);
        DeviceTensor tensor = Room(numbers.Length, type);
        Copy(new DeviceTensor(source.Address, numbers.Length, type), tensor);
        return tensor;
    }

    /// <summary>A tensor that holds NaN.</summary>
    internal DeviceTensor Room(long count, ElementType type)
    {
        Region region = Allocate(count * type.SizeInBytes(), type);
        using var nothing = new HostMemory(region.Bytes, type);
        nothing.Region.AsSpan<byte>().Fill(0xff);
        _device.Copy(nothing.Region, region);
        _device.Synchronize();
        return new DeviceTensor(region.Address, count, type);
    }

    /// <summary>A copy that the stream makes when it has come so far.</summary>
    internal void Copy(DeviceTensor from, DeviceTensor to) => Assert.Equal(
        CUresult.CUDA_SUCCESS,
        CudaDriver.cuMemcpyDtoDAsync_v2((ulong)to.Address, (ulong)from.Address, (nuint)(to.Count * to.Type.SizeInBytes()), Handle));

    /// <summary>Whether a tensor holds anything yet; memory of the emulated GPU is the process's.</summary>
    internal static bool IsWritten(DeviceTensor tensor) => new ReadOnlySpan<byte>((void*)tensor.Address, tensor.Type.SizeInBytes()).ContainsAnyExcept((byte)0xff);

    /// <summary>Waits for the stream, and reads.</summary>
    internal float[] Read(DeviceTensor tensor)
    {
        Assert.Equal(CUresult.CUDA_SUCCESS, CudaDriver.cuStreamSynchronize(Handle));
        float[] numbers = new float[tensor.Count];
        ElementConversion.ToFloat(new ReadOnlySpan<byte>((void*)tensor.Address, numbers.Length * tensor.Type.SizeInBytes()), tensor.Type, numbers);
        return numbers;
    }

    public void Dispose()
    {
        _ = CudaDriver.cuStreamDestroy_v2(Handle);
        _memory.ForEach(_device.Free);
    }

    private Region Allocate(long bytes, ElementType type)
    {
        Region region = _device.Allocate(bytes, type);
        _memory.Add(region);
        return region;
    }
}
