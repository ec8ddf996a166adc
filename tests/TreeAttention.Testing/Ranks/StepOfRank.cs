using System;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;

namespace TreeAttention.Testing.Ranks;

/// <summary>One rank's part of an attention step on a CUDA device, as the program makes it.</summary>
internal sealed class StepOfRank : IDisposable
{
    private readonly ITransport _transport;
    private readonly CudaDevice _device;
    private readonly AttentionStep _step;

    internal StepOfRank(ITransport transport, CudaDevice device, IControlPlane control, CpuCase inputs, AttentionPlan plan)
    {
        (_transport, _device) = (transport, device);
        Call = new DeviceCall(inputs, device, transport.Rank);
        var shards = new ShardMap(inputs.Shape, inputs.Layout, transport.Size, inputs.Type, inputs.ValuesInKeys);
        shards.ShareLimits(control, Call.Shard.Limits);
        _step = StepFactory.Create(new RankContext(transport, device, control), inputs.Problem, shards, plan, inputs.Shape.QueryLength);
    }

    /// <summary>The rank's queries and keys.</summary>
    internal DeviceCall Call { get; }

    /// <summary>Runs the step, and says what it sent.</summary>
    internal (PartialResult Result, TrafficCount Sent) Run(QueryBlock? queries = null)
    {
        TrafficCount before = _transport.Traffic.Count;
        PartialAttention state = _step.Run(queries ?? Call.Queries, Call.Shard);
        return (DeviceCall.Read(_device, state), _transport.Traffic.Count - before);
    }

    public void Dispose()
    {
        _step.Dispose();
        Call.Dispose();
    }
}
