using System;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

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
    /// <param name="isShard">The tensors hold the keys of the plan alone, [batch, keys of the plan, ...], in its storage order.</param>
    /// <exception cref="ShapeMismatchException">A tensor does not have the shape of the plan.</exception>
    /// <exception cref="FaultException">An element that must not be stored (65), out of memory (71), no such storage type (69).</exception>
    public static KeyValueShard Load(
        IDevice device, ShardPlan plan, TensorView key, TensorView value, NonFinitePolicy policy, bool isShard = false)
    {
        if (!StorageType.Of(plan.Type).IsStorage)
        {
            throw new FaultException(
                FaultCode.Unavailable, $"Keys and values cannot be stored as {plan.Type.ShortName()}. Use {Setting.StorageType} {StorageType.StoredNames("or")}.");
        }

        AttentionShape shape = plan.Shape;
        var keys = new PageWriter(key, plan, shape.HeadDim, policy, plan.KeyScaleOf, isShard);
        PageWriter? values = plan.ValuesInKeys ? null : new PageWriter(value, plan, shape.ValueDim, policy, plan.ValueScaleOf, isShard);
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
    private readonly int[]? _firstRows; // [pages of a batch row] where each page begins in a tensor that is a shard

    /// <summary>A writer of the tensor's rows; <paramref name="scaleOf"/> gives the scale of a KV head.</summary>
    /// <exception cref="ShapeMismatchException">
    /// The tensor is not [batch, key_len, kv_heads, <paramref name="dim"/>], or, of a shard, not as long as the plan has keys.
    /// </exception>
    public PageWriter(TensorView tensor, ShardPlan plan, int dim, NonFinitePolicy policy, Func<int, float> scaleOf, bool isShard)
    {
        AttentionShape shape = plan.Shape;
        _rows = new TensorRows(tensor);
        int length = shape.KeyLength;
        if (isShard)
        {
            _firstRows = new int[plan.PagesPerBatch];
            length = 0;
            for (int page = 0; page < _firstRows.Length; page++)
            {
                _firstRows[page] = length;
                length += plan.Pages[page].Span.Count;
            }
        }

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
            int position = RowOf(page, index);
            Span<byte> target = into.Slice(((head * count) + index) * rowBytes, rowBytes);
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

    private int RowOf(KeyPage page, int index) =>
        _firstRows is null ? page.Span.PositionAt(index) : _firstRows[page.Slot % _plan.PagesPerBatch] + index;

    private bool HasFault(int batch, int position, int head) => FaultOfRow(batch, position, head) is not null;

    // Which bad element is met first depends on strides and layout; the one that is named does not.
    private FaultException FirstFault() => _plan.Pages
        .OrderBy(page => page.Batch).ThenBy(page => page.Span.FirstPosition)
        .SelectMany(page => Enumerable.Range(0, page.Span.Count).Select(index => (page.Batch, Position: RowOf(page, index))))
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
