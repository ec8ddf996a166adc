using System;
using System.Runtime.InteropServices;

namespace TreeAttention.Distributed;

/// <summary>Repacks queries from a tensor into a device's memory, head-major and in single precision.</summary>
public static class QueryLoader
{
    /// <summary>Loads the queries at <paramref name="indices"/> of every batch row.</summary>
    /// <param name="device">Allocates the block; whoever gets it frees it.</param>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], any strides, any floating-point type.</param>
    /// <param name="indices">Which queries, in the order of the block.</param>
    /// <param name="policy">What happens to NaN and infinities. A finite element too large for f32 is always a fault.</param>
    /// <exception cref="ShapeMismatchException">The tensor does not have the shape of the call.</exception>
    /// <exception cref="FaultException">An element that must not be used (65), out of memory (71).</exception>
    public static QueryBlock Load(IDevice device, AttentionShape shape, TensorView query, int[] indices, NonFinitePolicy policy)
    {
        var rows = new TensorRows(query);
        if (!query.Shape.AsSpan().SequenceEqual([shape.Batch, shape.QueryLength, shape.QueryHeads, shape.HeadDim]))
        {
            throw new ShapeMismatchException(
                $"{query.Name} is {query.ShapeText} but [batch, query_len, query_heads, head_dim] of this call is "
                + $"[{shape.Batch}, {shape.QueryLength}, {shape.QueryHeads}, {shape.HeadDim}]. Check --layout.");
        }

        long bytes = (long)shape.Batch * shape.QueryHeads * indices.Length * shape.HeadDim * sizeof(float);
        Region block = device.Allocate(bytes, ElementType.Float32);
        try
        {
            using HostMemory? staging = device.Place == MemoryPlace.Device ? new HostMemory(bytes, ElementType.Float32) : null;
            Region written = staging?.Region ?? block;
            Write(rows, query.Name, shape, indices, written, policy);
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
        TensorRows rows, string name, AttentionShape shape, int[] indices, Region into, NonFinitePolicy policy)
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
