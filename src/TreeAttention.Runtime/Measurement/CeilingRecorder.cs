using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Measures the ceilings of the ranks' devices in the rounds of a benchmark: a GPU's, or a processor's with the threads that the ranks compute with.</summary>
public sealed class CeilingRecorder : IDisposable
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
