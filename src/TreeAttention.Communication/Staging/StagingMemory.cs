using System;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>One piece of page-locked memory that grows to the largest region it ever stood in for.</summary>
internal sealed class StagingMemory(IStagingDevice device) : IDisposable
{
    private Region _memory;

    /// <summary>As many bytes as the region has, of its type. The last taken is taken over.</summary>
    internal Region Take(Region region)
    {
        if (_memory.Bytes < region.Bytes)
        {
            Dispose();
            _memory = device.AllocatePinned(region.Bytes, ElementType.Byte);
        }

        return region with { Address = _memory.Address, Place = MemoryPlace.Pinned };
    }

    public void Dispose()
    {
        if (_memory.Address != 0)
        {
            device.FreePinned(_memory);
            _memory = Region.Empty;
        }
    }
}
