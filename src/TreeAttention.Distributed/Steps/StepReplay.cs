using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Steps;

/// <summary>Work around a step that is captured when it is done a second time over the same memory, and from then on enqueued whole.</summary>
/// <remarks>
/// The first time it is done directly: that compiles and allocates. Other queries, another shard, tables at another place or a
/// cache that has outgrown the room of its tables begin anew; that a cache grows inside that room does not. All ranks capture
/// at the same run, for they see the same changes.
/// </remarks>
/// <param name="device">The device.</param>
/// <param name="step">What is done; its transport's traffic is counted at every replay.</param>
/// <param name="enqueue">The work, the step's <see cref="AttentionStep.RunDirectly"/> among it.</param>
internal sealed class StepReplay(IStreamDevice device, AttentionStep step, Func<QueryBlock, KeyValueShard, PartialAttention> enqueue) : IDisposable
{
    private QueryBlock? _queries;
    private KeyValueShard? _shard;
    private (long Tables, int Room, long Constants) _basis;
    private PartialAttention? _result;
    private IReplay? _replay;
    private TrafficCount _sent;

    /// <summary>Enqueues the work, directly where the step cannot be captured.</summary>
    internal PartialAttention Run(QueryBlock queries, KeyValueShard shard)
    {
        if (!step.IsCapturable)
        {
            return enqueue(queries, shard);
        }

        (long, int, long) basis = (device.Refresh(shard.Plan), shard.Plan.RoomPages, step.Constants);
        if (!ReferenceEquals(queries, _queries) || !ReferenceEquals(shard, _shard) || basis != _basis)
        {
            Dispose();
            (_queries, _shard, _basis) = (queries, shard, basis);
            return enqueue(queries, shard);
        }

        if (_replay is null)
        {
            Capture(queries, shard);
        }
        else
        {
            step.Traffic.CountAgain(_sent);
        }

        _replay!.Launch();
        return _result!;
    }

    /// <summary>Forgets what was captured.</summary>
    public void Dispose()
    {
        _replay?.Dispose();
        (_replay, _queries, _shard) = (null, null, null);
    }

    private void Capture(QueryBlock queries, KeyValueShard shard)
    {
        TrafficCount before = step.Traffic.Count;
        _replay = device.Capture(() => _result = enqueue(queries, shard));
        _sent = step.Traffic.Count - before;
    }
}
