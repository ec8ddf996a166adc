using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;

namespace TreeAttention.Testing.Devices;

/// <summary>A step of a group of one rank on a CUDA device, as the program makes it.</summary>
internal sealed class AloneStep : IDisposable
{
    private readonly InProcessGroup _group;
    private readonly DeviceTransport _transport;
    private readonly AttentionStep _step;

    private AloneStep(CudaDevice device, CpuCase inputs, PageLimits[] limits, AttentionPlan plan)
    {
        _group = InProcessGroup.Create(1);
        _transport = new DeviceTransport(_group.Transports[0], device);
        var shards = new ShardMap(inputs.Shape, inputs.Layout, 1, inputs.Type, inputs.ValuesInKeys);
        shards.ShareLimits(_group.Controls[0], limits);
        _step = StepFactory.Create(new RankContext(_transport, device, _group.Controls[0]), inputs.Problem, shards, plan, inputs.Shape.QueryLength);
    }

    internal StepTimes Times => _step.Times;

    internal static AloneStep Create(CudaDevice device, CpuCase inputs, PageLimits[] limits, AttentionPlan plan) => new(device, inputs, limits, plan);

    internal PartialAttention Run(QueryBlock queries, KeyValueShard shard) => _step.Run(queries, shard);

    public void Dispose()
    {
        _step.Dispose();
        _transport.Dispose();
        _group.Dispose();
    }
}
