using System;
using System.Diagnostics;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cuda;

/// <summary>What one GPU can do at most: read its memory by a kernel of ours, copy in it, and multiply and add in one storage type.</summary>
/// <remarks>
/// f16 and bf16 multiply in tensor cores with sums in fp32 (mma.sync, what the attend kernels use), f32 with multiply-adds in fp32.
/// A measurement enqueues some milliseconds of work and waits once, so that the cost of launches does not count.
/// </remarks>
internal sealed class GpuCeilings : IMachineCeilings
{
    private const int WordBytes = 16;
    private const int ReadThreads = 512;
    private const int MultiplyThreads = 256;
    private const int BlocksPerMultiprocessor = 4;
    private const int Chains = 8; // of ceilings.cu
    private const double TileOperations = 2 * 16 * 8 * 16;

    private readonly CudaContext _context;
    private readonly KernelFunctions _kernels;
    private readonly DeviceMemoryPool _pool;
    private readonly DeviceCopies _copies;
    private readonly KernelProgram _program;
    private readonly bool _usesTensorCores;
    private readonly long _bytes;
    private readonly int _repeats;
    private readonly long _steps;
    private nint _memory;
    private nint _out;

    /// <summary>Takes the memory that is read.</summary>
    /// <param name="context">The device.</param>
    /// <param name="kernels">Its kernels.</param>
    /// <param name="pool">Its memory.</param>
    /// <param name="copies">Its copies.</param>
    /// <param name="type">Storage type whose multiplications are measured.</param>
    /// <param name="work">How much a measurement does.</param>
    internal GpuCeilings(
        CudaContext context, KernelFunctions kernels, DeviceMemoryPool pool, DeviceCopies copies, ElementType type, CeilingWork work)
    {
        (_context, _kernels, _pool, _copies) = (context, kernels, pool, copies);
        (_bytes, _repeats, _steps) = (work.Bytes / (2 * WordBytes) * (2 * WordBytes), work.Repeats, work.Steps);
        _usesTensorCores = type is ElementType.Float16 or ElementType.BFloat16;
        string element = type == ElementType.Float16 ? "float16" : type == ElementType.BFloat16 ? "bfloat16" : "float";
        _program = new KernelProgram("ceilings.cu", ["read_stream", $"multiply_rate<{element}>"], true);
        _memory = pool.Take(_bytes);
        copies.Fill(_memory, 1, _bytes);
        _out = pool.Take((long)Blocks * ReadThreads * sizeof(uint));
    }

    private int Blocks => BlocksPerMultiprocessor * _context.Multiprocessors;

    /// <inheritdoc/>
    public double MeasureRead()
    {
        var arguments = new CeilingArguments { In = _memory, Out = _out, Count = _bytes / WordBytes };
        nint function = _kernels.Get(_program, 0, 0);
        return Rate((double)_bytes * _repeats, () =>
        {
            for (int i = 0; i < _repeats; i++)
            {
                _kernels.Launch(function, (Blocks, 1, 1), ReadThreads, 0, arguments, "read_stream");
            }
        });
    }

    /// <inheritdoc/>
    public double? MeasureCopy()
    {
        long half = _bytes / 2;
        var source = new Region(_memory, half, ElementType.Byte, MemoryPlace.Device);
        Region target = source with { Address = _memory + (nint)half };
        return Rate((double)_bytes * _repeats, () =>
        {
            for (int i = 0; i < _repeats; i++)
            {
                _copies.Copy(source, target);
            }
        });
    }

    /// <inheritdoc/>
    public double MeasureMultiplyAdd()
    {
        var arguments = new CeilingArguments { Out = _out, Count = _steps };
        nint function = _kernels.Get(_program, 1, 0);
        const int WarpLanes = 32;
        double units = _usesTensorCores ? Chains * TileOperations * (MultiplyThreads / WarpLanes) : 4 * Chains * 2.0 * MultiplyThreads;
        return Rate(
            units * _steps * Blocks, () => _kernels.Launch(function, (Blocks, 1, 1), MultiplyThreads, 0, arguments, _program.Expressions[1]));
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_memory != 0)
        {
            _context.Enter();
            _pool.Give(_memory);
            _pool.Give(_out);
            (_memory, _out) = (0, 0);
        }
    }

    /// <summary>What the kernel that reads has left: a word of each thread; for tests.</summary>
    internal uint[] WordsRead()
    {
        using var host = new HostMemory((long)Blocks * ReadThreads * sizeof(uint), ElementType.Byte);
        _context.Enter();
        _copies.Copy(new Region(_out, host.Region.Bytes, ElementType.Byte, MemoryPlace.Device), host.Region);
        return host.Region.AsSpan<uint>().ToArray();
    }

    private double Rate(double work, Action enqueue)
    {
        _context.Enter();
        _context.Synchronize();
        long start = Stopwatch.GetTimestamp();
        enqueue();
        _context.Synchronize();
        return work / Stopwatch.GetElapsedTime(start).TotalSeconds * 1e-9;
    }
}

/// <summary>How much a measurement of a GPU's ceilings does.</summary>
/// <param name="Bytes">Memory that is read; on a device far more than its caches hold.</param>
/// <param name="Repeats">How often it is read, or copied, in one measurement.</param>
/// <param name="Steps">Steps of multiplications.</param>
internal sealed record CeilingWork(long Bytes, int Repeats, long Steps)
{
    /// <summary>Some milliseconds of a data centre's GPU.</summary>
    internal static CeilingWork OfDevice(long bytes) => new(bytes, 8, 10_000);

    /// <summary>A token: emulated time says nothing, and every thread of a grid is work for the CPU.</summary>
    internal static CeilingWork OfEmulation { get; } = new(1 << 17, 1, 2);
}
