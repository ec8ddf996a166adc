using System;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Loading;

/// <summary>Repacks queries from a tensor into a device's memory, head-major and in single precision.</summary>
internal static class QueryLoader
{
    /// <summary>Loads the queries at <paramref name="indices"/> of every batch row.</summary>
    /// <param name="device">Allocates the block; whoever gets it frees it.</param>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], any strides, any floating-point type.</param>
    /// <param name="indices">Which queries, in the order of the block.</param>
    /// <param name="policy">What happens to NaN and infinities. A finite element too large for f32 is always a fault.</param>
    /// <param name="present">The queries that there are; all when null. Absent ones are 0, and not read.</param>
    /// <exception cref="ShapeMismatchException">The tensor does not have the shape of the call.</exception>
    /// <exception cref="FaultException">An element that must not be used (65), out of memory (71).</exception>
    public static QueryBlock Load(IDevice device, AttentionShape shape, TensorView query, int[] indices, NonFinitePolicy policy, PresentTokens? present = null)
    {
        var rows = new TensorRows(query);
        if (!query.Shape.AsSpan().SequenceEqual([shape.Batch, shape.QueryLength, shape.QueryHeads, shape.HeadDim]))
        {
            throw new ShapeMismatchException(
                $"{query.Name} is {query.ShapeText} but [batch, query_len, query_heads, head_dim] of this call is "
                + $"[{shape.Batch}, {shape.QueryLength}, {shape.QueryHeads}, {shape.HeadDim}]. Check {Setting.AxisOrder}.");
        }

        long bytes = (long)shape.Batch * shape.QueryHeads * indices.Length * shape.HeadDim * sizeof(float);
        Region block = device.Allocate(bytes, ElementType.Float32);
        try
        {
            using HostMemory? staging = device.Place == MemoryPlace.Device ? new HostMemory(bytes, ElementType.Float32) : null;
            Region written = staging?.Region ?? block;
            Write(rows, query.Name, shape, indices, written, policy, present);
            if (staging is not null)
            {
                device.Copy(written, block);
                device.Synchronize();
            }

            return new QueryBlock(block, indices);
        }
        catch
        {
            device.Free(block);
            throw;
        }
    }

    private static void Write(
        TensorRows rows, string name, AttentionShape shape, int[] indices, Region into, NonFinitePolicy policy, PresentTokens? present)
    {
        int dim = shape.HeadDim;
        var storage = new RowStorage(rows.Type, ElementType.Float32, dim);
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int i = 0; i < indices.Length; i++)
            {
                for (int head = 0; head < shape.QueryHeads; head++)
                {
                    long row = ((((long)batch * shape.QueryHeads) + head) * indices.Length) + i;
                    Span<float> target = into.Slice(row * dim, dim).AsSpan<float>();
                    if (indices[i] >= (present?.QueriesOf(batch) ?? shape.QueryLength))
                    {
                        target.Clear();
                        continue;
                    }

                    storage.Store(rows.Bytes(batch, indices[i], head), MemoryMarshal.AsBytes(target));
                    if (!double.IsFinite(RowStorage.SumOfSquares(target)))
                    {
                        ThrowOnFault(rows, name, batch, indices[i], head, policy);
                    }
                }
            }
        }
    }

    private static void ThrowOnFault(TensorRows rows, string name, int batch, int position, int head, NonFinitePolicy policy)
    {
        for (int dim = 0; dim < rows.Dim; dim++)
        {
            double element = rows.Element(batch, position, head, dim);
            if (StorageRange.FaultOf(name, batch, position, head, dim, element, ElementType.Float32, policy) is { } fault)
            {
                throw fault;
            }
        }
    }
}

/// <summary>Reads the rows (one batch row, position and head; all dimensions) of a BSHD tensor, whatever its strides and element type.</summary>
/// <remarks>A row that lies in one piece is read where it lies; any other is gathered. Not safe for several threads.</remarks>
internal sealed class TensorRows
{
    private readonly TensorView _view;
    private readonly TensorBytes _bytes;
    private readonly int _size;
    private readonly byte[] _gathered;
    private readonly float[] _single;

    /// <summary>Rows of the tensor.</summary>
    /// <exception cref="FaultException">The elements are not floating-point numbers (65).</exception>
    /// <exception cref="ShapeMismatchException">The tensor has not four axes.</exception>
    public TensorRows(TensorView view)
    {
        if (view.Rank != 4)
        {
            throw new ShapeMismatchException(
                $"{view.Name} {view.ShapeText} has {view.Rank} axes but there must be four: batch, length, heads, dimension.");
        }

        if (StorageType.Of(view.Type).Widen is null)
        {
            throw new FaultException(
                FaultCode.BadInput,
                $"{view.Name} has elements of type {view.Type.ShortName()}, but queries, keys and values are floating-point numbers. "
                + "Convert it to float16, float32 or float64.");
        }

        _view = view;
        _bytes = new TensorBytes(view);
        _size = view.Type.SizeInBytes();
        _gathered = new byte[Dim * _size];
        _single = new float[Dim];
    }

    /// <summary>Elements of a row.</summary>
    public int Dim => (int)_view.Shape[3];

    /// <summary>The tensor's element type.</summary>
    public ElementType Type => _view.Type;

    /// <summary>Neighbouring heads lie closer together than neighbouring positions.</summary>
    public bool HeadsLieTogether => Math.Abs(_view.Strides[2]) < Math.Abs(_view.Strides[1]);

    /// <summary>The bytes of a row, as they were stored; valid until the next call.</summary>
    public ReadOnlySpan<byte> Bytes(int batch, int position, int head)
    {
        nint first = AddressOf(batch, position, head);
        long stride = _view.Strides[3];
        if (stride == 1)
        {
            return _bytes.At(first, _gathered.Length);
        }

        for (int dim = 0; dim < Dim; dim++)
        {
            _bytes.At(first + (nint)(dim * stride * _size), _size).CopyTo(_gathered.AsSpan(dim * _size));
        }

        return _gathered;
    }

    /// <summary>A row in double precision, exactly, scales of heads included.</summary>
    public void Read(int batch, int position, int head, Span<double> row)
    {
        ReadOnlySpan<byte> bytes = Bytes(batch, position, head);
        if (Type == ElementType.Float64)
        {
            bytes.CopyTo(MemoryMarshal.AsBytes(row));
            return;
        }

        ElementConversion.ToFloat(bytes, Type, _single);
        TensorPrimitives.ConvertChecked<float, double>(_single, row);
        if (_view.HeadScales is { } scales)
        {
            TensorPrimitives.Multiply(row, scales[head], row);
        }
    }

    /// <summary>A row in single precision, scales of heads included.</summary>
    public void Read(int batch, int position, int head, Span<float> row)
    {
        ElementConversion.ToFloat(Bytes(batch, position, head), Type, row);
        if (_view.HeadScales is { } scales)
        {
            TensorPrimitives.Multiply(row, scales[head], row);
        }
    }

    /// <summary>One element, exactly, its head's scale included.</summary>
    public double Element(int batch, int position, int head, int dim) => (_view.HeadScales?[head] ?? 1.0) * ElementConversion.ToDouble(
        _bytes.At(AddressOf(batch, position, head) + (nint)(dim * _view.Strides[3] * _size), _size), Type);

    private nint AddressOf(int batch, int position, int head) =>
        _view.Address + (nint)(_view.OffsetOf([batch, position, head]) * _size);
}
