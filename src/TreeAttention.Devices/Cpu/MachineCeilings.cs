using System;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Scheduling;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cpu;

/// <summary>What this machine can do at most with so many threads: read memory, and multiply and add in fp32.</summary>
/// <remarks>Machines are shared: only ratios taken in the same round mean anything.</remarks>
internal sealed class MachineCeilings : IMachineCeilings
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

/// <summary>Multiplies and adds in registers.</summary>
internal abstract class MultiplyWork : IWork
{
    /// <summary>Steps of a unit, each twelve vectors.</summary>
    protected const int Steps = 1_000_000;

    /// <summary>Floating-point operations of a unit.</summary>
    internal abstract double OperationsPerUnit { get; }

    /// <inheritdoc/>
    public abstract void Run(int unit, int worker);
}

/// <summary>Multiplies and adds vectors of one width.</summary>
internal sealed class MultiplyWork<TWidth, TVector> : MultiplyWork
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    internal override double OperationsPerUnit => 2.0 * Steps * 12 * TWidth.Count;

    /// <summary>What came out, so that it cannot be left out.</summary>
    internal float Total { get; private set; }

    public override void Run(int unit, int worker) => Total = Work(Steps);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Work(int steps)
    {
        TVector by = TWidth.Create(0.999f);
        TVector and = TWidth.Create(1e-4f);
        TVector a = and, b = and, c = and, d = and, e = and, f = and, g = and, h = and, i = and, j = and, k = and, l = and;
        for (int step = 0; step < steps; step++)
        {
            a = TWidth.MultiplyAdd(a, by, and);
            b = TWidth.MultiplyAdd(b, by, and);
            c = TWidth.MultiplyAdd(c, by, and);
            d = TWidth.MultiplyAdd(d, by, and);
            e = TWidth.MultiplyAdd(e, by, and);
            f = TWidth.MultiplyAdd(f, by, and);
            g = TWidth.MultiplyAdd(g, by, and);
            h = TWidth.MultiplyAdd(h, by, and);
            i = TWidth.MultiplyAdd(i, by, and);
            j = TWidth.MultiplyAdd(j, by, and);
            k = TWidth.MultiplyAdd(k, by, and);
            l = TWidth.MultiplyAdd(l, by, and);
        }

        a = TWidth.Add(TWidth.Add(TWidth.Add(a, b), TWidth.Add(c, d)), TWidth.Add(TWidth.Add(e, f), TWidth.Add(g, h)));
        return TWidth.Sum(TWidth.Add(a, TWidth.Add(TWidth.Add(i, j), TWidth.Add(k, l))));
    }
}

/// <summary>Reads memory, a chunk a unit.</summary>
internal abstract class ReadWork(Region memory) : IWork
{
    /// <summary>Bytes of a unit.</summary>
    internal const long Chunk = 4 << 20;

    /// <summary>Number of units.</summary>
    internal int Units => (int)(memory.Bytes / Chunk);

    /// <summary>The memory.</summary>
    protected Region Memory => memory;

    /// <summary>Writes to the memory, so that every page of it exists.</summary>
    internal void Touch()
    {
        for (int unit = 0; unit < Units; unit++)
        {
            memory.Slice(unit * (Chunk / sizeof(float)), Chunk / sizeof(float)).AsSpan<float>().Fill(1);
        }
    }

    /// <inheritdoc/>
    public abstract void Run(int unit, int worker);
}

/// <summary>Reads with vectors of one width.</summary>
internal sealed unsafe class ReadWork<TWidth, TVector>(Region memory) : ReadWork(memory)
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>What was read, so that it cannot be left out.</summary>
    internal float Total { get; private set; }

    public override void Run(int unit, int worker) => Total = Sum((float*)(Memory.Address + (nint)(unit * Chunk)));

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Sum(float* from)
    {
        TVector a = TWidth.Create(0f), b = a, c = a, d = a;
        for (nint i = 0; i < (nint)(Chunk / sizeof(float)); i += 4 * TWidth.Count)
        {
            a = TWidth.Add(a, TWidth.Load(from + i));
            b = TWidth.Add(b, TWidth.Load(from + i + TWidth.Count));
            c = TWidth.Add(c, TWidth.Load(from + i + (2 * TWidth.Count)));
            d = TWidth.Add(d, TWidth.Load(from + i + (3 * TWidth.Count)));
        }

        return TWidth.Sum(TWidth.Add(TWidth.Add(a, b), TWidth.Add(c, d)));
    }
}
