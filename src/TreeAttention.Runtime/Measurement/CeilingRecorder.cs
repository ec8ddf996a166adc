using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;

namespace TreeAttention.Runtime.Measurement;

/// <summary>Measures the ceilings of the ranks' devices in the rounds of a benchmark: a GPU's, or a processor's with the threads that the ranks compute with.</summary>
internal sealed class CeilingRecorder : IDisposable
{
    private const long BytesOfAllRanks = 1L << 30;

    private readonly AttentionGroup _group;
    private readonly IMachineCeilings _ceilings;
    private readonly List<long> _readRates = [];
    private readonly List<long> _copyRates = [];
    private readonly List<long> _multiplyRates = [];

    /// <summary>Allocates what is read. Every rank makes one.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="type">Storage type whose multiplications a GPU is measured by.</param>
    public CeilingRecorder(AttentionGroup group, ElementType type)
    {
        _group = group;
        long bytes = BytesOfAllRanks / group.Size;
        _ceilings = group.Context.Device is CudaDevice cuda ? cuda.CreateCeilings(type, bytes) : new MachineCeilings(group.Threads, bytes);
    }

    /// <summary>Measures each ceiling once, all ranks at the same time.</summary>
    public void Run()
    {
        _group.Context.Transport.Barrier();
        _readRates.Add((long)(_ceilings.MeasureRead() * 1e9));
        _group.Context.Transport.Barrier();
        if (_ceilings.MeasureCopy() is { } copied)
        {
            _copyRates.Add((long)(copied * 1e9));
            _group.Context.Transport.Barrier();
        }

        _multiplyRates.Add((long)(_ceilings.MeasureMultiplyAdd() * 1e9));
    }

    /// <summary>The rates of all ranks together, in each round. Every rank calls it.</summary>
    public CeilingMeasurement Summarise() => new(Together(_readRates), Together(_copyRates), Together(_multiplyRates));

    /// <inheritdoc/>
    public void Dispose() => _ceilings.Dispose();

    // All ranks did the same amount of work; it was done when the slowest was.
    private double[] Together(List<long> rates)
    {
        long[][] all = _group.Gather(rates.ToArray());
        return [.. Enumerable.Range(0, rates.Count).Select(round => (double)_group.Size * all.Min(rank => rank[round]))];
    }
}

/// <summary>The machine's ceilings, round after round, beside which steps were timed in the same rounds.</summary>
/// <param name="ReadBytesPerSecond">Bandwidth with which all ranks together read memory, in each round.</param>
/// <param name="CopyBytesPerSecond">Bandwidth with which they copy inside their devices, reads and writes counted; empty where a device has no copy of its own.</param>
/// <param name="OperationsPerSecond">Multiplications and additions of all ranks together, in each round.</param>
internal sealed record CeilingMeasurement(double[] ReadBytesPerSecond, double[] CopyBytesPerSecond, double[] OperationsPerSecond)
{
    /// <summary>Median over the rounds of <paramref name="bytes"/> per run as a fraction of the read bandwidth.</summary>
    public double ReadRatio(StepMeasurement cost, double bytes) => Ratio(cost, bytes, ReadBytesPerSecond);

    /// <summary>Median over the rounds of <paramref name="bytes"/> per run as a fraction of the copy bandwidth; null where there is none.</summary>
    public double? CopyRatio(StepMeasurement cost, double bytes) => CopyBytesPerSecond.Length == 0 ? null : Ratio(cost, bytes, CopyBytesPerSecond);

    /// <summary>Median over the rounds of <paramref name="operations"/> per run as a fraction of the FMA rate.</summary>
    public double FmaRatio(StepMeasurement cost, double operations) => Ratio(cost, operations, OperationsPerSecond);

    private static double Ratio(StepMeasurement cost, double work, double[] ceiling) =>
        RunRecorder.Quantile(cost.RunsUs.Zip(ceiling, (microseconds, rate) => work / (microseconds * 1e-6) / rate), 0.5);
}

/// <summary>The operations that the kernels of a rank's device are built of, each tried alone.</summary>
internal static class DevicePrimitives
{
    /// <summary>Each primitive of this rank's GPU and what differs from the golden data, null where nothing does; none on a CPU.</summary>
    public static IReadOnlyList<(string Primitive, string? Difference)> Check(AttentionGroup group) =>
        group.Context.Device is CudaDevice cuda
            ? [.. cuda.CheckPrimitives().Select(check => (check.Primitive, check.Difference))]
            : [];
}
