using System;
using System.Collections.Generic;
using TreeAttention.Devices.Cpu.Kernels;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Devices.Cpu.Scheduling;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu;

/// <summary>The CPU as a device: SIMD kernels of the widest vectors it has, and a pool of threads.</summary>
/// <remarks>Work is done when a call returns. Calls come from one thread.</remarks>
internal sealed class CpuDevice : IDevice
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

/// <summary>New tokens in host memory: each row rotated, converted to the storage type, written and measured.</summary>
internal sealed class TokenRows
{
    private readonly float[] _row = new float[AttentionShape.MaxHeadDim];

    /// <summary>Stores the tokens that this rank owns.</summary>
    /// <param name="tokens">The tokens.</param>
    /// <param name="shard">The cache's contents and limits; the limits grow.</param>
    internal void Store(in TokenBlock tokens, KeyValueShard shard)
    {
        AttentionShape shape = shard.Plan.Shape;
        ReadOnlySpan<float> keys = tokens.Keys.AsSpan<float>();
        ReadOnlySpan<float> values = tokens.Values.AsSpan<float>();
        Span<PageLimits> grown = shard.Growing.AsSpan<PageLimits>();
        for (int row = 0; row < tokens.Count * shape.KvHeads; row++)
        {
            (int token, int head) = Math.DivRem(row, shape.KvHeads);
            TokenPlace place = tokens.Places[token];
            if (!place.IsHere)
            {
                continue;
            }

            ref PageLimits limits = ref grown[(place.Slot * shape.KvHeads) + head];
            Span<float> key = _row.AsSpan(0, shape.HeadDim);
            keys.Slice(row * shape.HeadDim, shape.HeadDim).CopyTo(key);
            tokens.Rotary?.Turn(key, token);
            float keyScale = shard.Plan.KeyScaleOf(head);
            Write(key, keyScale, shard.Contents, place.KeyOffset + ((long)head * PageSpan.Keys * shape.HeadDim));
            limits = limits.WithKey(key, keyScale);

            float valueScale = shard.Plan.ValueScaleOf(head);
            Span<float> value = _row.AsSpan(0, shape.ValueDim);
            if (!shard.Plan.ValuesInKeys)
            {
                values.Slice(row * shape.ValueDim, shape.ValueDim).CopyTo(value);
                Write(value, valueScale, shard.Contents, place.ValueOffset + ((long)head * PageSpan.Keys * shape.ValueDim));
            }

            limits = limits.WithValue(value, valueScale);
        }
    }

    /// <summary>Takes queries into the order of a block, rotated.</summary>
    internal static void Arrange(AttentionShape shape, ReadOnlySpan<float> queries, RotaryAngles? rotary, Span<float> into)
    {
        int dim = shape.HeadDim;
        for (int row = 0; row < shape.Batch * shape.QueryLength * shape.QueryHeads; row++)
        {
            (int token, int head) = Math.DivRem(row, shape.QueryHeads);
            (int batch, int query) = Math.DivRem(token, shape.QueryLength);
            int place = (((batch * shape.QueryHeads) + head) * shape.QueryLength) + query;
            Span<float> target = into.Slice(place * dim, dim);
            queries.Slice(row * dim, dim).CopyTo(target);
            rotary?.Turn(target, token);
        }
    }

    // The row becomes what was stored, not multiplied by the scale, for its limits.
    private static void Write(Span<float> row, float scale, Region contents, long element)
    {
        Span<byte> stored = contents.Slice(element, row.Length).AsSpan<byte>();
        StorageType.Of(contents.Type).Store(row, scale, stored);
        ElementConversion.ToFloat(stored, contents.Type, row);
    }
}
