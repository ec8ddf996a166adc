using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
