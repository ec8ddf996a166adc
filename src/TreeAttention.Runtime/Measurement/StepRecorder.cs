using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Runtime.Measurement;

/// <summary>Runs one step of a group again and again and keeps what each run cost on this rank.</summary>
internal sealed class StepRecorder(AttentionGroup group, AttentionStep step, QueryBlock queries, KeyValueShard shard)
{
    private readonly RunRecorder _runs = new(group);

    /// <summary>The step that is measured.</summary>
    public AttentionStep Step { get; } = step;

    /// <summary>Runs the step once without counting it.</summary>
    public PartialAttention WarmUp() => Step.Run(queries, shard);

    /// <summary>Runs the step once and keeps its cost.</summary>
    public PartialAttention Run()
    {
        long start = _runs.Begin();
        PartialAttention state = Step.Run(queries, shard);
        _runs.End(Stopwatch.GetTimestamp() - start, Step.Times.ComputeTicks, Step.Times.CommunicationTicks);
        return state;
    }

    /// <inheritdoc cref="RunRecorder.Summarise"/>
    public StepMeasurement Summarise() => _runs.Summarise();
}

/// <summary>What the counted runs of one step cost. Times are microseconds; each run counts as its slowest rank took.</summary>
/// <param name="MedianUs">Median over the runs.</param>
/// <param name="MinUs">Fastest run.</param>
/// <param name="P95Us">95th percentile of the runs.</param>
/// <param name="ComputeUs">Median over the runs of the slowest rank's time on its device.</param>
/// <param name="CommunicationUs">Median over the runs of the longest time that a rank spent in its transport.</param>
/// <param name="BytesSent">Payload that the busiest rank handed to the transport in one step.</param>
/// <param name="ControlBytes">Bytes of the control plane so far, of the busiest rank.</param>
/// <param name="Messages">Point-to-point messages of the busiest rank in one step.</param>
/// <param name="Collectives">Collectives in one step.</param>
/// <param name="PeakBytes">Most device memory that a rank held: its shard, its queries, and what the step needs.</param>
/// <param name="RunsUs">Every counted run, in order.</param>
internal sealed record StepMeasurement(
    double MedianUs, double MinUs, double P95Us, double ComputeUs, double CommunicationUs,
    long BytesSent, long ControlBytes, long Messages, long Collectives, long PeakBytes,
    double[] RunsUs);

/// <summary>Keeps what timed runs cost on this rank, and puts the ranks' costs together.</summary>
/// <remarks>
/// Every rank records the same runs. A run begins at a barrier and counts as its slowest rank took; clocks of different ranks
/// are never compared.
/// </remarks>
internal sealed class RunRecorder(AttentionGroup group)
{
    private const int ValuesOfARun = 3;
    private readonly List<long> _ticks = [];
    private readonly Traffic _traffic = group.Context.Transport.Traffic;
    private long _bytesSent;
    private long _messages;
    private long _collectives;

    /// <summary>Waits for all ranks and starts the clock.</summary>
    /// <returns>The time stamp of the start.</returns>
    public long Begin()
    {
        group.Context.Control.Enter("barrier");
        group.Context.Transport.Barrier();
        group.Context.Control.Leave();
        _traffic.Reset();
        return Stopwatch.GetTimestamp();
    }

    /// <summary>Keeps a run: ticks in all, on the device, in the transport.</summary>
    public void End(long total, long compute, long communication)
    {
        _ticks.AddRange([total, compute, communication]);
        (_bytesSent, _messages, _collectives) = (_traffic.BytesSent, _traffic.Messages, _traffic.Collectives);
    }

    /// <summary>Puts the runs of all ranks together. Every rank calls it.</summary>
    /// <exception cref="InvalidOperationException">Nothing was run.</exception>
    public StepMeasurement Summarise()
    {
        int runs = _ticks.Count / ValuesOfARun;
        if (runs == 0)
        {
            throw new InvalidOperationException("No run was counted.");
        }

        long[][] ticks = group.Gather(_ticks.ToArray());
        long[][] counts = group.Gather(
            _bytesSent, _traffic.ControlBytes, _messages, _collectives, group.Context.Device.Memory.PeakBytes);
        long Largest(int index) => counts.Max(rank => rank[index]);
        double[] total = SlowestRank(ticks, runs, 0);
        return new StepMeasurement(
            Quantile(total, 0.5), total.Min(), Quantile(total, 0.95),
            Quantile(SlowestRank(ticks, runs, 1), 0.5), Quantile(SlowestRank(ticks, runs, 2), 0.5),
            Largest(0), Largest(1), Largest(2), Largest(3), Largest(4), total);
    }

    /// <summary>The value below which a fraction of the values lies, interpolated between neighbours.</summary>
    public static double Quantile(IEnumerable<double> values, double fraction)
    {
        double[] ascending = [.. values.Order()];
        double index = fraction * (ascending.Length - 1);
        int below = (int)index;
        int above = Math.Min(below + 1, ascending.Length - 1);
        return ascending[below] + ((index - below) * (ascending[above] - ascending[below]));
    }

    private static double[] SlowestRank(long[][] ticks, int runs, int value)
    {
        double[] microseconds = new double[runs];
        for (int run = 0; run < runs; run++)
        {
            microseconds[run] = ticks.Max(rank => rank[(run * ValuesOfARun) + value]) * 1e6 / Stopwatch.Frequency;
        }

        return microseconds;
    }
}
