using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Transports;

/// <summary>One piece of memory that grows with the regions it stands in for: by a quarter at least, for those of a growing cache are a little larger each time.</summary>
internal sealed class StagingMemory(Func<long, Region> allocate, Action<Region> free) : IDisposable
{
    private Region _memory;

    /// <summary>Page-locked memory of a device.</summary>
    internal static StagingMemory Pinned(IStagingDevice device) =>
        new(bytes => device.AllocatePinned(bytes, ElementType.Byte), device.FreePinned);

    /// <summary>Memory of a device.</summary>
    internal static StagingMemory On(IDevice device) => new(bytes => device.Allocate(bytes, ElementType.Byte), device.Free);

    /// <summary>As many bytes as the region has, of its type. The last taken is taken over.</summary>
    internal Region Take(Region region)
    {
        if (_memory.Bytes < region.Bytes)
        {
            long grown = Math.Max(region.Bytes, _memory.Bytes / 4 * 5);
            Dispose();
            _memory = allocate(grown);
        }

        return region with { Address = _memory.Address, Place = _memory.Place };
    }

    public void Dispose()
    {
        if (_memory.Address != 0)
        {
            free(_memory);
            _memory = Region.Empty;
        }
    }
}
