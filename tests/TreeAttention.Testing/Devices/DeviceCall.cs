using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;

namespace TreeAttention.Testing.Devices;

/// <summary>A case's inputs of one rank, loaded into any device's memory the way the program loads them.</summary>
internal sealed class DeviceCall : IDisposable
{
    private readonly IDevice _device;
    private readonly AttentionProblem _problem;
    private readonly List<Region> _memory = [];

    internal DeviceCall(CpuCase inputs, IDevice device, int rank = 0)
    {
        (_device, _problem) = (device, inputs.Problem);
        AttentionShape shape = inputs.Shape;
        using HostMemory query = Hold(inputs.Query);
        using HostMemory key = Hold(inputs.Key);
        using HostMemory value = Hold(inputs.Value);
        ShardPlan plan = inputs.PlanOf(rank);
        Queries = QueryLoader.Load(
            device, shape, HeadMajor("query", query, shape.Batch, shape.QueryHeads, shape.QueryLength, shape.HeadDim),
            [.. Enumerable.Range(0, shape.QueryLength)], NonFinitePolicy.Propagate);
        Shard = KeyValueLoader.Load(
            device, plan, HeadMajor("key", key, shape.Batch, shape.KvHeads, shape.KeyLength, shape.HeadDim),
            HeadMajor("value", value, shape.Batch, shape.KvHeads, shape.KeyLength, shape.ValueDim), NonFinitePolicy.Propagate);
        _memory.AddRange([Queries.Values, Shard.Contents]);
        Into = AllocateState(inputs.Rows, shape.ValueDim);
    }

    internal QueryBlock Queries { get; }

    internal KeyValueShard Shard { get; }

    internal PartialAttention Into { get; }

    /// <summary>Attention on a device, all ranks one after the other, their partials merged by the host.</summary>
    internal static PartialResult Run(CpuCase inputs, IDevice device)
    {
        var whole = new PartialResult(inputs.Rows, inputs.Shape.ValueDim);
        for (int rank = 0; rank < inputs.Ranks; rank++)
        {
            using var call = new DeviceCall(inputs, device, rank);
            whole.Fold(call.Attend());
        }

        return whole;
    }

    /// <summary>Attends and reads the state back.</summary>
    internal PartialResult Attend()
    {
        _device.Attend(_problem, Queries, Shard, Into);
        return Read(_device, Into);
    }

    /// <summary>Attends along lane nodes and gives one result for each.</summary>
    internal List<PartialResult> AttendLanes(IReadOnlyList<LaneNode> nodes)
    {
        PartialAttention[] partials = [.. nodes.Select(_ => AllocateState(Into.Rows, Into.ValueDim))];
        _device.AttendLanes(_problem, Queries, Shard, [.. nodes], partials);
        return [.. partials.Select(partial => Read(_device, partial))];
    }

    /// <summary>A state of a device in managed memory.</summary>
    internal static PartialResult Read(IDevice device, PartialAttention state)
    {
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        device.Copy(state.Region, host.Region);
        return PartialResult.Of(new PartialAttention(host.Region, state.Rows, state.ValueDim));
    }

    public void Dispose() => _memory.ForEach(_device.Free);

    private static HostMemory Hold(float[] values)
    {
        var memory = new HostMemory((long)values.Length * sizeof(float), ElementType.Float32);
        values.CopyTo(memory.Region.AsSpan<float>());
        return memory;
    }

    // [batch, heads, length, dim] in memory, as the tensor [batch, length, heads, dim].
    private static TensorView HeadMajor(string name, HostMemory memory, int batch, int heads, int length, int dim) =>
        new TensorView(name, memory.Region.Address, ElementType.Float32, [batch, heads, length, dim]).SwapAxes(1, 2);

    private PartialAttention AllocateState(int rows, int valueDim)
    {
        Region region = _device.Allocate(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
        _memory.Add(region);
        return new PartialAttention(region, rows, valueDim);
    }
}
