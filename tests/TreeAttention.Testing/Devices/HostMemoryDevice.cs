using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Testing.Devices;

/// <summary>Memory of a device without its arithmetic: host memory that may call itself a device's, and notices misuse.</summary>
internal sealed class HostMemoryDevice(MemoryPlace place = MemoryPlace.Host) : IDevice
{
    private readonly Dictionary<nint, HostMemory> _allocated = [];

    public string Name => "memory";

    public string Description => "memory only";

    public MemoryPlace Place => place;

    public MemoryAccount Memory { get; } = new();

    public int Allocations => _allocated.Count;

    public Region Allocate(long bytes, ElementType type)
    {
        var memory = new HostMemory(bytes, type, Memory);
        _allocated.Add(memory.Region.Address, memory);
        return memory.Region with { Place = place };
    }

    public void Free(Region region)
    {
        _allocated.Remove(region.Address, out HostMemory? memory);
        memory!.Dispose();
    }

    public void Copy(Region from, Region to) => OnHost(from).AsSpan<byte>().CopyTo(OnHost(to).AsSpan<byte>());

    /// <summary>What lies in a region of this device.</summary>
    public static Region OnHost(Region region) => region with { Place = MemoryPlace.Host };

    public void Synchronize()
    {
    }

    public void Dispose()
    {
        foreach (HostMemory memory in _allocated.Values)
        {
            memory.Dispose();
        }
    }

    public void Clear(PartialAttention partial) => throw new NotSupportedException();

    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into) =>
        throw new NotSupportedException();

    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard,
        ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into) => throw new NotSupportedException();

    public void Append(in TokenBlock tokens, KeyValueShard shard) => throw new NotSupportedException();

    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into) =>
        throw new NotSupportedException();

    public void Merge(PartialAttention into, PartialAttention from) => throw new NotSupportedException();

    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator) =>
        throw new NotSupportedException();

    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into) =>
        throw new NotSupportedException();
}
