using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>Host memory that the GPU reads and writes by itself.</summary>
internal sealed unsafe class PinnedMemory : IDisposable
{
    private const uint Portable = 1; // pinned for every context of the process
    private void* _address;

    /// <summary>Allocates so many bytes; their contents are anything.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal PinnedMemory(long bytes, ElementType type)
    {
        void* address;
        CUresult result = CudaDriver.cuMemHostAlloc(&address, (nuint)Math.Max(1, bytes), Portable);
        if (result == CUresult.CUDA_ERROR_OUT_OF_MEMORY)
        {
            throw new FaultException(
                FaultCode.OutOfMemory,
                $"{bytes:N0} bytes of page-locked host memory could not be allocated. Raise the limit of locked memory (ulimit -l), or use "
                + "fewer ranks on this machine.");
        }

        CudaFaults.Check(result, "an allocation of page-locked memory");
        _address = address;
        Region = new Region((nint)address, bytes, type, MemoryPlace.Pinned);
    }

    /// <summary>The memory.</summary>
    internal Region Region { get; }

    public void Dispose()
    {
        if (_address != null)
        {
            _ = CudaDriver.cuMemFreeHost(_address);
            _address = null;
        }
    }
}

/// <summary>The page-locked regions that were given to transports.</summary>
internal sealed class PinnedRegions : IDisposable
{
    private readonly Dictionary<nint, PinnedMemory> _memory = [];

    /// <summary>Allocates a region; its contents are anything.</summary>
    internal Region Allocate(long bytes, ElementType type)
    {
        var memory = new PinnedMemory(bytes, type);
        _memory.Add(memory.Region.Address, memory);
        return memory.Region;
    }

    /// <summary>Frees a region.</summary>
    internal void Free(Region region)
    {
        if (!_memory.Remove(region.Address, out PinnedMemory? memory))
        {
            throw new ArgumentException($"No page-locked memory was allocated at {region.Address:x}, or it was freed before.", nameof(region));
        }

        memory.Dispose();
    }

    public void Dispose()
    {
        foreach (PinnedMemory memory in _memory.Values)
        {
            memory.Dispose();
        }

        _memory.Clear();
    }
}
