using System;
using System.Diagnostics;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The cost model of a ring that rotates keys and values, T = p·c + (p-1)·V/b, with c and V/b measured in the same rounds.</summary>
/// <remarks>c is the slowest rank's attention to one shard, V/b the bare exchange of a shard with the neighbours. On CPUs copies take the cores that compute, so overlap hides nothing.</remarks>
internal sealed class RingModel : IDisposable
{
    private readonly AttentionGroup _group;
    private readonly Region _outgoing;
    private readonly Region _buffer;
    private readonly Region _incoming;
    private readonly RunRecorder _exchanges;

    /// <summary>Allocates what the exchange receives into.</summary>
    public RingModel(AttentionGroup group, ShardedCall call)
    {
        _group = group;
        _outgoing = call.Shard.Contents;
        _exchanges = new RunRecorder(group);
        IDevice device = group.Context.Device;
        _buffer = device.Allocate(call.Shards.LargestElements * call.Shard.Plan.Type.SizeInBytes(), call.Shard.Plan.Type);
        _incoming = _buffer.Slice(0, call.Shards.PlanOf((group.Rank + group.Size - 1) % group.Size).Elements);
    }

    /// <summary>Exchanges the shard with the neighbours once.</summary>
    public void Run()
    {
        long start = _exchanges.Begin();
        _group.Context.Transport.Exchange(
            _outgoing, (_group.Rank + 1) % _group.Size, _incoming, (_group.Rank + _group.Size - 1) % _group.Size);
        long ticks = Stopwatch.GetTimestamp() - start;
        _exchanges.End(ticks, 0, ticks);
    }

    /// <summary>What the bare exchanges cost. Every rank calls it.</summary>
    public StepMeasurement Summarise() => _exchanges.Summarise();

    /// <summary>Microseconds of a ring step by the model.</summary>
    /// <param name="computeUs">c: the slowest rank's attention to one shard.</param>
    /// <param name="exchangeUs">V/b: a bare exchange.</param>
    public double PredictUs(double computeUs, double exchangeUs) => (_group.Size * computeUs) + ((_group.Size - 1) * exchangeUs);

    /// <inheritdoc/>
    public void Dispose() => _group.Context.Device.Free(_buffer);
}
