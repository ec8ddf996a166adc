using System;
using System.Diagnostics;
using System.Runtime.Intrinsics;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>What this machine can do at most with so many threads: read memory, and multiply and add in fp32.</summary>
/// <remarks>Machines are shared: only ratios taken in the same round mean anything.</remarks>
public sealed class MachineCeilings : IMachineCeilings
{
    private readonly WorkerPool _pool;
    private readonly ReadWork _read;
    private readonly MultiplyWork _multiply;
    private readonly MappedMemory _memory;

    /// <summary>Allocates and touches the memory that is read.</summary>
    /// <param name="threads">Threads, the caller's included.</param>
    /// <param name="bytes">Bytes that are read; far more than the caches hold.</param>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public MachineCeilings(int threads, long bytes = 1L << 30)
        : this(threads, bytes, Vector512.IsHardwareAccelerated ? 512 : 256)
    {
    }

    internal MachineCeilings(int threads, long bytes, int bits)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(bytes, ReadWork.Chunk);
        _pool = new WorkerPool(threads);
        _memory = new MappedMemory(bytes, ElementType.Float32, new MemoryAccount());
        _read = bits == 512
            ? new ReadWork<Width512, Vector512<float>>(_memory.Region)
            : new ReadWork<Width256, Vector256<float>>(_memory.Region);
        _multiply = bits == 512 ? new MultiplyWork<Width512, Vector512<float>>() : new MultiplyWork<Width256, Vector256<float>>();
        _read.Touch();
    }

    /// <inheritdoc/>
    public double MeasureRead()
    {
        long start = Stopwatch.GetTimestamp();
        _pool.Run(_read, _read.Units);
        return _read.Units * (double)ReadWork.Chunk / Stopwatch.GetElapsedTime(start).TotalSeconds * 1e-9;
    }

    /// <inheritdoc/>
    /// <remarks>A processor copies with the same instructions that read and write.</remarks>
    public double? MeasureCopy() => null;

    /// <inheritdoc/>
    /// <remarks>Independent fused multiply-adds for some ten milliseconds.</remarks>
    public double MeasureMultiplyAdd()
    {
        int units = 8 * _pool.Threads;
        long start = Stopwatch.GetTimestamp();
        _pool.Run(_multiply, units);
        return units * _multiply.OperationsPerUnit / Stopwatch.GetElapsedTime(start).TotalSeconds * 1e-9;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _pool.Dispose();
        _memory.Dispose();
    }
}
