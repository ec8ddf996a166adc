using System;

namespace TreeAttention.Distributed;

/// <summary>A step that is captured when it is run a second time over the same memory, and from then on enqueued whole.</summary>
/// <remarks>The first run is direct: it compiles and allocates. Other queries, another shard or a page table that has changed begin anew.</remarks>
internal sealed class StepReplay(IStreamDevice device, Traffic traffic, Func<QueryBlock, KeyValueShard, PartialAttention> run) : IDisposable
{
    private QueryBlock? _queries;
    private KeyValueShard? _shard;
    private long _version;
    private PartialAttention? _result;
    private IReplay? _replay;
    private TrafficCount _sent;

    /// <summary>Enqueues the step.</summary>
    internal PartialAttention Run(QueryBlock queries, KeyValueShard shard)
    {
        if (!ReferenceEquals(queries, _queries) || !ReferenceEquals(shard, _shard) || shard.Plan.Version != _version)
        {
            Dispose();
            (_queries, _shard, _version) = (queries, shard, shard.Plan.Version);
            return run(queries, shard);
        }

        if (_replay is null)
        {
            Capture(queries, shard);
        }
        else
        {
            traffic.CountAgain(_sent);
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
        TrafficCount before = traffic.Count;
        _replay = device.Capture(() => _result = run(queries, shard));
        _sent = traffic.Count - before;
    }
}
