using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The CPU as a device: SIMD kernels of the widest vectors it has, and a pool of threads.</summary>
/// <remarks>Work is done when a call returns. Calls come from one thread.</remarks>
public sealed class CpuDevice : IDevice
{
    private readonly Dictionary<nint, IDisposable> _allocations = [];
    private readonly WorkerPool _pool;
    private readonly TileWorkers _workers;
    private readonly AttendWork _attend;
    private readonly LaneWork _lanes;
    private readonly TokenRows _tokens = new();

    /// <summary>A device of so many threads, the caller's included.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is less than one thread.</exception>
    public CpuDevice(int threads)
        : this(threads, TileWorkers.Widest)
    {
    }

    internal CpuDevice(int threads, Func<int, MemoryAccount, TileWorkers> width)
    {
        _pool = new WorkerPool(threads);
        _workers = width(threads, Memory);
        _attend = new AttendWork(_pool, _workers, Memory);
        _lanes = new LaneWork(_pool, _workers, Memory);
        Description = $"{_workers.Name}, {threads} {(threads == 1 ? "thread" : "threads")}";
    }

    /// <inheritdoc/>
    public string Name => "cpu";

    /// <inheritdoc/>
    public string Description { get; }

    /// <inheritdoc/>
    public MemoryPlace Place => MemoryPlace.Host;

    /// <inheritdoc/>
    public MemoryAccount Memory { get; } = new();

    /// <inheritdoc/>
    public long AvailableBytes => SystemMemory.Available();

    /// <inheritdoc/>
    public Region Allocate(long bytes, ElementType type)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        if (bytes < MappedMemory.HugePage)
        {
            var memory = new HostMemory(bytes, type, Memory);
            _allocations.Add(memory.Region.Address, memory);
            return memory.Region;
        }

        var mapped = new MappedMemory(bytes, type, Memory);
        _allocations.Add(mapped.Region.Address, mapped);
        return mapped.Region;
    }

    /// <inheritdoc/>
    public void Free(Region region)
    {
        if (!_allocations.Remove(region.Address, out IDisposable? memory))
        {
            throw new ArgumentException($"This device has allocated nothing at {region.Address:x}, or it was freed before.", nameof(region));
        }

        memory.Dispose();
    }

    /// <inheritdoc/>
    public unsafe void Copy(Region from, Region to)
    {
        if (from.Bytes != to.Bytes || from.Place == MemoryPlace.Device || to.Place == MemoryPlace.Device)
        {
            throw new ArgumentException($"{from.Bytes} bytes ({from.Place}) cannot be copied to {to.Bytes} bytes ({to.Place}) by the CPU.", nameof(to));
        }

        Buffer.MemoryCopy((void*)from.Address, (void*)to.Address, to.Bytes, from.Bytes);
    }

    /// <inheritdoc/>
    public void Clear(PartialAttention partial) => partial.Clear();

    /// <inheritdoc/>
    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        RequireRows(problem, queries, into);
        _attend.Attend(problem, queries, shard, into);
    }

    /// <inheritdoc/>
    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard,
        ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        foreach (PartialAttention partial in into)
        {
            RequireRows(problem, queries, partial);
        }

        _lanes.Attend(problem, queries, shard, nodes, into);
    }

    /// <inheritdoc/>
    public void Merge(PartialAttention into, PartialAttention from) => into.MergeFrom(from);

    /// <inheritdoc/>
    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator) => PartialWeights.Weigh(
        partial, top.AsSpan<float>(), unit, numerator.AsSpan<float>(), denominator.AsSpan<float>());

    /// <inheritdoc/>
    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into) => PartialWeights.Unweigh(
        top.AsSpan<float>(), unit, numerator.AsSpan<float>(), denominator.AsSpan<float>(), into);

    /// <inheritdoc/>
    public void Append(in TokenBlock tokens, KeyValueShard shard) => _tokens.Store(in tokens, shard);

    /// <inheritdoc/>
    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into) =>
        TokenRows.Arrange(shape, queries.AsSpan<float>(), rotary, into.Values.AsSpan<float>());

    /// <inheritdoc/>
    public void Synchronize()
    {
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _pool.Dispose();
        _attend.Dispose();
        _lanes.Dispose();
        _workers.Dispose();
        foreach (IDisposable memory in _allocations.Values)
        {
            memory.Dispose();
        }

        _allocations.Clear();
    }

    private static void RequireRows(AttentionProblem problem, QueryBlock queries, PartialAttention into)
    {
        int rows = queries.RowsFor(problem.Shape);
        if (into.Rows != rows || into.ValueDim != problem.Shape.ValueDim)
        {
            throw new ShapeMismatchException(
                $"Queries of {rows} rows × {problem.Shape.ValueDim} do not fit a partial of {into.Rows} rows × {into.ValueDim}.");
        }
    }
}
