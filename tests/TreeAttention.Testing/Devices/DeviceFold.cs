using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Partials;

namespace TreeAttention.Testing.Devices;

/// <summary>Folds lane nodes along the tree with a device's own merge.</summary>
internal sealed class DeviceFold(IDevice device, int rows, int valueDim) : IDisposable
{
    private readonly List<Region> _memory = [];

    /// <summary>Outputs, maxima and sums of a node.</summary>
    internal float[] Fold(LaneNode node, IReadOnlyDictionary<LaneNode, PartialResult> leaves)
    {
        using var host = new HostMemory(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
        device.Copy(StateOf(node, leaves).Region, host.Region);
        return host.Region.AsSpan<float>().ToArray();
    }

    public void Dispose() => _memory.ForEach(device.Free);

    private PartialAttention StateOf(LaneNode node, IReadOnlyDictionary<LaneNode, PartialResult> leaves)
    {
        if (leaves.TryGetValue(node, out PartialResult? leaf))
        {
            return Upload(leaf);
        }

        int half = node.Size / 2;
        PartialAttention left = StateOf(new LaneNode(node.First, half), leaves);
        device.Merge(left, StateOf(new LaneNode(node.First + half, half), leaves));
        return left;
    }

    private PartialAttention Upload(PartialResult result)
    {
        using var host = new HostMemory(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
        var state = new PartialAttention(host.Region, rows, valueDim);
        result.Output.CopyTo(state.Output);
        result.Max.CopyTo(state.Max);
        result.Sum.CopyTo(state.Sum);
        Region region = device.Allocate(host.Region.Bytes, ElementType.Float32);
        _memory.Add(region);
        device.Copy(host.Region, region);
        return new PartialAttention(region, rows, valueDim);
    }
}
