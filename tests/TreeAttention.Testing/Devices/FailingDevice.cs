using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Testing.Devices;

/// <summary>A device that fails when it is asked to attend once too often.</summary>
/// <param name="inner">What computes until then.</param>
/// <param name="attends">How often it attends.</param>
/// <param name="error">What it throws then; a time-out when null.</param>
internal sealed class FailingDevice(IDevice inner, int attends, Exception? error = null) : IDevice
{
    private int _left = attends;

    public string Name => inner.Name;

    public string Description => inner.Description;

    public MemoryPlace Place => inner.Place;

    public MemoryAccount Memory => inner.Memory;

    public Region Allocate(long bytes, ElementType type) => inner.Allocate(bytes, type);

    public void Free(Region region) => inner.Free(region);

    public void Append(in TokenBlock tokens, KeyValueShard shard) => inner.Append(in tokens, shard);

    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into) =>
        inner.ArrangeQueries(shape, queries, rotary, into);

    public void Copy(Region from, Region to) => inner.Copy(from, to);

    public void Clear(PartialAttention partial) => inner.Clear(partial);

    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        if (_left-- == 0)
        {
            throw error ?? new TimeoutException("the device is out of time");
        }

        inner.Attend(problem, queries, shard, into);
    }

    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard,
        ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into) => inner.AttendLanes(problem, queries, shard, nodes, into);

    public void Merge(PartialAttention into, PartialAttention from) => inner.Merge(into, from);

    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator) =>
        inner.Weigh(partial, top, unit, numerator, denominator);

    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into) =>
        inner.Unweigh(top, unit, numerator, denominator, into);

    public void Synchronize() => inner.Synchronize();

    public void Dispose()
    {
    }
}
