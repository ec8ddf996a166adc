using System;
using System.Numerics.Tensors;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Verification;

/// <summary>Reads the numbers of a tensor [batch, length, heads, dim] row by row, by its strides alone.</summary>
internal sealed class TensorNumbers(TensorView tensor)
{
    private readonly int _size = tensor.Type.SizeInBytes();
    private readonly TensorBytes _memory = new(tensor);
    private readonly byte[] _bytes = new byte[tensor.Shape[3] * tensor.Type.SizeInBytes()];
    private readonly float[] _single = new float[tensor.Shape[3]];

    /// <summary>[dim] the elements as they are stored; valid until the next call.</summary>
    public ReadOnlySpan<byte> Stored(int batch, int position, int head)
    {
        long[] strides = tensor.Strides;
        long first = (batch * strides[0]) + (position * strides[1]) + (head * strides[2]);
        if (strides[3] == 1)
        {
            return _memory.At(tensor.Address + (nint)(first * _size), _bytes.Length);
        }

        for (int dim = 0; dim < _single.Length; dim++)
        {
            _memory.At(tensor.Address + (nint)((first + (dim * strides[3])) * _size), _size).CopyTo(_bytes.AsSpan(dim * _size));
        }

        return _bytes;
    }

    /// <summary>A row in double precision, exactly, scales of heads included.</summary>
    /// <param name="batch">Batch row.</param>
    /// <param name="position">Index on the length axis.</param>
    /// <param name="head">Head.</param>
    /// <param name="row">[dim]</param>
    public void Read(int batch, int position, int head, Span<double> row)
    {
        ReadOnlySpan<byte> stored = Stored(batch, position, head);
        if (tensor.Type == ElementType.Float64)
        {
            stored.CopyTo(MemoryMarshal.AsBytes(row));
            return;
        }

        ElementConversion.ToFloat(stored, tensor.Type, _single);
        TensorPrimitives.ConvertChecked<float, double>(_single, row);
        if (tensor.HeadScales is { } scales)
        {
            TensorPrimitives.Multiply(row, scales[head], row);
        }
    }
}
