using System;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Testing.Devices;

/// <summary>A planted defect: a device that no longer brings the pages and lengths of plans to the GPU after so many captures.</summary>
internal sealed class ForgetfulDevice(CudaDevice device, int captures) : IStreamDevice
{
    private long _place;

    public string Name => device.Name;

    public string Description => device.Description;

    public MemoryPlace Place => device.Place;

    public MemoryAccount Memory => device.Memory;

    public string BusAddress => device.BusAddress;

    public Action? WhileWaiting
    {
        get => device.WhileWaiting;
        set => device.WhileWaiting = value;
    }

    public long Refresh(ShardPlan plan) => device.Captures < captures ? _place = device.Refresh(plan) : _place;

    public Region Allocate(long bytes, ElementType type) => device.Allocate(bytes, type);

    public void Free(Region region) => device.Free(region);

    public Region AllocatePinned(long bytes, ElementType type) => device.AllocatePinned(bytes, type);

    public void FreePinned(Region region) => device.FreePinned(region);

    public void Copy(Region from, Region to) => device.Copy(from, to);

    public void Clear(PartialAttention partial) => device.Clear(partial);

    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into) =>
        device.Attend(problem, queries, shard, into);

    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into) =>
        device.AttendLanes(problem, queries, shard, nodes, into);

    public void Merge(PartialAttention into, PartialAttention from) => device.Merge(into, from);

    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator) =>
        device.Weigh(partial, top, unit, numerator, denominator);

    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into) =>
        device.Unweigh(top, unit, numerator, denominator, into);

    public void Append(in TokenBlock tokens, KeyValueShard shard) => device.Append(in tokens, shard);

    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into) =>
        device.ArrangeQueries(shape, queries, rotary, into);

    public void Synchronize() => device.Synchronize();

    public nint EnterStream() => device.EnterStream();

    public void Follow(nint stream) => device.Follow(stream);

    public void Precede(nint stream) => device.Precede(stream);

    public IReplay Capture(Action work) => device.Capture(work);

    public void EndReplays() => device.EndReplays();

    public IStepInput CreateStepInput(AttentionShape shape, int tokens, ShardPlan plan, RotaryOptions? rotary) =>
        device.CreateStepInput(shape, tokens, plan, rotary);

    public IStreamTimer CreateTimer() => device.CreateTimer();

    public IPeerWindow CreatePeerWindow(int rank, int ranks, long bytesPerRank) => device.CreatePeerWindow(rank, ranks, bytesPerRank);

    public void Dispose() => device.Dispose();
}
