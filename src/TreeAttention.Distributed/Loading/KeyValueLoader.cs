using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Loading;

/// <summary>Repacks one rank's keys and values from tensors into the pages of a device, and measures them on the way.</summary>
/// <remarks>
/// Only the rows of the shard are read, so that of a mapped file only its own part is ever touched. The message about a bad
/// element depends on the tensors and the plan alone: keys before values, then ascending batch row, position, head, dimension.
/// </remarks>
internal static class KeyValueLoader
{
    /// <summary>Loads a shard.</summary>
    /// <param name="device">Allocates the contents; whoever gets the shard frees them.</param>
    /// <param name="plan">Pages, storage type and scales.</param>
    /// <param name="key">
    /// [batch, key_len, kv_heads, head_dim], the whole tensor, any strides, any floating-point type. A tensor of such a type with
    /// scales of its own has those of the plan.
    /// </param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]; not looked at when the values lie in the keys.</param>
    /// <param name="policy">What happens to NaN and infinities. A finite element too large for the storage type is always a fault.</param>
    /// <param name="held">The keys that the tensors hold, [batch, keys held, ...], in this order; null: all.</param>
    /// <exception cref="ShapeMismatchException">A tensor does not have the shape of the plan.</exception>
    /// <exception cref="FaultException">An element that must not be stored (65), out of memory (71), no such storage type (69).</exception>
    public static KeyValueShard Load(
        IDevice device, ShardPlan plan, TensorView key, TensorView value, NonFinitePolicy policy, IReadOnlyList<PageSpan>? held = null)
    {
        if (!StorageType.Of(plan.Type).IsStorage)
        {
            throw new FaultException(
                FaultCode.Unavailable, $"Keys and values cannot be stored as {plan.Type.ShortName()}. Use {Setting.StorageType} {StorageType.StoredNames("or")}.");
        }

        AttentionShape shape = plan.Shape;
        var keys = new PageWriter(key, plan, shape.HeadDim, policy, plan.KeyScaleOf, held);
        PageWriter? values = plan.ValuesInKeys ? null : new PageWriter(value, plan, shape.ValueDim, policy, plan.ValueScaleOf, held);
        Region contents = device.Allocate(plan.Bytes, plan.Type);
        try
        {
            PageLimits[] limits = WritePages(device, plan, contents, keys, shape.HeadDim, page => page.KeyOffset);
            PageLimits[] valueLimits = values is not null
                ? WritePages(device, plan, contents, values, shape.ValueDim, page => page.ValueOffset)
                : limits;
            for (int i = 0; i < limits.Length; i++)
            {
                limits[i] = limits[i] with { LargestValue = valueLimits[i].LargestValue };
            }

            return new KeyValueShard(plan, contents, limits);
        }
        catch
        {
            device.Free(contents);
            throw;
        }
    }

    private static PageLimits[] WritePages(
        IDevice device, ShardPlan plan, Region contents, PageWriter writer, int dim, Func<KeyPage, long> offsetOf)
    {
        int heads = plan.Shape.KvHeads;
        int measured = plan.ValuesInKeys ? plan.Shape.ValueDim : dim;
        var limits = new PageLimits[plan.Pages.Count * heads];
        using HostMemory? staging = device.Place == MemoryPlace.Device
            ? new HostMemory(plan.Type.BytesFor((long)heads * PageSpan.Keys * dim), plan.Type)
            : null;
        for (int i = 0; i < plan.Pages.Count; i++)
        {
            KeyPage page = plan.Pages[i];
            long count = writer.ElementsOf(page);
            Region target = contents.Slice(offsetOf(page), count);
            Region written = staging?.Region.Slice(0, count) ?? target;
            writer.Write(page, written.AsSpan<byte>(), measured, limits.AsSpan(i * heads, heads));
            if (staging is not null)
            {
                // The next page reuses the staging memory, so its bytes must have left.
                device.Copy(written, target);
                device.Synchronize();
            }
        }

        return limits;
    }
}

/// <summary>Writes the rows of one tensor, keys or values, page by page in a plan's order and storage type, and measures them.</summary>
internal sealed class PageWriter
{
    private readonly TensorRows _rows;
    private readonly string _name;
    private readonly ShardPlan _plan;
    private readonly NonFinitePolicy _policy;
    private readonly RowStorage _storage;
    private readonly Func<int, float> _scaleOf;
    private readonly HeldRows? _held;

    /// <summary>A writer of the tensor's rows; <paramref name="scaleOf"/> gives the scale of a KV head.</summary>
    /// <exception cref="ShapeMismatchException">
    /// The tensor is not [batch, key_len, kv_heads, <paramref name="dim"/>], or not as long as it holds keys.
    /// </exception>
    public PageWriter(
        TensorView tensor, ShardPlan plan, int dim, NonFinitePolicy policy, Func<int, float> scaleOf, IReadOnlyList<PageSpan>? held)
    {
        AttentionShape shape = plan.Shape;
        _rows = new TensorRows(tensor);
        _held = held is null ? null : new HeldRows(held);
        int length = _held?.Count ?? shape.KeyLength;
        if (!tensor.Shape.AsSpan().SequenceEqual([shape.Batch, length, shape.KvHeads, dim]))
        {
            throw new ShapeMismatchException(
                $"{tensor.Name} is {tensor.ShapeText} but [batch, key_len, kv_heads, dim] of this call is "
                + $"[{shape.Batch}, {length}, {shape.KvHeads}, {dim}]. Check {Setting.AxisOrder}.");
        }

        _name = tensor.Name;
        _plan = plan;
        _policy = policy;
        _scaleOf = scaleOf;
        _storage = new RowStorage(tensor.Type, plan.Type, dim);
    }

    /// <summary>Elements of this tensor in a page.</summary>
    public long ElementsOf(KeyPage page) => (long)_plan.Shape.KvHeads * page.Span.Count * _rows.Dim;

    /// <summary>Writes one page.</summary>
    /// <param name="page">The page.</param>
    /// <param name="into">[kv_heads][count][dim] elements of the storage type.</param>
    /// <param name="measuredDims">Dimensions of a row that count for its largest magnitude.</param>
    /// <param name="limits">[kv_heads] receives the largest row norm and the largest magnitude.</param>
    /// <exception cref="FaultException">An element must not be stored (65).</exception>
    public void Write(KeyPage page, Span<byte> into, int measuredDims, Span<PageLimits> limits)
    {
        int heads = _plan.Shape.KvHeads;
        int count = page.Span.Count;
        int rowBytes = (int)_plan.Type.BytesFor(_rows.Dim);
        limits.Clear();
        for (int row = 0; row < heads * count; row++)
        {
            // Rows are read in the order in which they lie, for the sake of the disk and the prefetcher.
            (int index, int head) = _rows.HeadsLieTogether ? (row / heads, row % heads) : (row % count, row / count);
            Span<byte> target = into.Slice(((head * count) + index) * rowBytes, rowBytes);
            if (!IsPresent(page, index))
            {
                target.Clear();
                continue;
            }

            int position = RowOf(page, index);
            ReadOnlySpan<float> stored = _storage.Store(_rows.Bytes(page.Batch, position, head), target, _scaleOf(head));
            double squares = RowStorage.SumOfSquares(stored);
            if (!double.IsFinite(squares) && (_policy == NonFinitePolicy.Error || HasFault(page.Batch, position, head)))
            {
                throw FirstFault();
            }

            double scale = _scaleOf(head);
            limits[head] = limits[head].WithNorm(squares * scale * scale).WithValue(stored[..measuredDims], (float)scale);
        }
    }

    // An absent key is 0: it is read by nobody, and makes no page look larger than it is.
    private bool IsPresent(KeyPage page, int index) => _plan.Present?.HasKey(page.Batch, page.Span.PositionAt(index)) ?? true;

    private int RowOf(KeyPage page, int index)
    {
        int position = page.Span.PositionAt(index);
        return _held?.RowOf(position) ?? position;
    }

    private bool HasFault(int batch, int position, int head) => FaultOfRow(batch, position, head) is not null;

    // Which bad element is met first depends on strides and layout; the one that is named does not.
    private FaultException FirstFault() => _plan.Pages
        .OrderBy(page => page.Batch).ThenBy(page => page.Span.FirstPosition)
        .SelectMany(page => Enumerable.Range(0, page.Span.Count).Where(index => IsPresent(page, index))
            .Select(index => (page.Batch, Position: RowOf(page, index))))
        .SelectMany(key => Enumerable.Range(0, _plan.Shape.KvHeads).Select(head => FaultOfRow(key.Batch, key.Position, head)))
        .First(fault => fault is not null)!;

    private FaultException? FaultOfRow(int batch, int position, int head)
    {
        for (int dim = 0; dim < _rows.Dim; dim++)
        {
            double element = _rows.Element(batch, position, head, dim);
            if (StorageRange.FaultOf(_name, batch, position, head, dim, element, _plan.Type, _policy, _scaleOf(head)) is { } fault)
            {
                return fault;
            }
        }

        return null;
    }
}

/// <summary>The keys of a tensor that holds some of the axis: where each one lies.</summary>
internal sealed class HeldRows
{
    private readonly (PageSpan Span, int Row)[] _spans; // in the order of first positions

    /// <summary>Keys in this order.</summary>
    internal HeldRows(IReadOnlyList<PageSpan> held)
    {
        _spans = new (PageSpan, int)[held.Count];
        for (int i = 0; i < held.Count; i++)
        {
            _spans[i] = (held[i], Count);
            Count += held[i].Count;
        }

        Array.Sort(_spans, (left, right) => left.Span.FirstPosition.CompareTo(right.Span.FirstPosition));
    }

    /// <summary>Keys that are held.</summary>
    internal int Count { get; }

    /// <summary>The row of the key at a position.</summary>
    /// <exception cref="ShapeMismatchException">Another rank holds it.</exception>
    internal int RowOf(int position)
    {
        // Spans of one run follow each other, those of two may interleave only where keys are dealt one by one: the last that begins before is tried first.
        for (int i = LastUpTo(position); i >= 0; i--)
        {
            (PageSpan span, int row) = _spans[i];
            KeyInterval index = span.IndicesIn(new KeyInterval(position, position + 1));
            if (!index.IsEmpty)
            {
                return row + index.First;
            }
        }

        throw new ShapeMismatchException($"The key at position {position} is not among the {Count} that this rank gives.");
    }

    private int LastUpTo(int position)
    {
        (int low, int high) = (0, _spans.Length);
        while (low < high)
        {
            int middle = (low + high) / 2;
            (low, high) = _spans[middle].Span.FirstPosition <= position ? (middle + 1, high) : (low, middle);
        }

        return low - 1;
    }
}
