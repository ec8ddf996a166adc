using System;
using System.Buffers.Binary;
using System.Linq;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Testing.Tensors;

/// <summary>A tensor in host memory of its own, of any element type and storage order.</summary>
public sealed class HostTensor : IDisposable
{
    private readonly HostMemory _memory;

    /// <summary>Stores the elements, given in row-major order, with the axes in the given order from outermost to innermost.</summary>
    public HostTensor(string name, ElementType type, long[] shape, ReadOnlySpan<double> elements, params ReadOnlySpan<int> axes)
    {
        int[] order = axes.IsEmpty ? [.. Enumerable.Range(0, shape.Length)] : axes.ToArray();
        long[] strides = new long[shape.Length];
        long stride = 1;
        foreach (int axis in order.Reverse())
        {
            strides[axis] = stride;
            stride *= shape[axis];
        }

        _memory = new HostMemory(elements.Length * type.SizeInBytes(), type);
        View = new TensorView(name, _memory.Region.Address, type, shape, strides);
        for (int i = 0; i < elements.Length; i++)
        {
            Write(i, elements[i]);
        }
    }

    public TensorView View { get; }

    /// <summary>Row-major values, each exactly as it was stored.</summary>
    public double[] Values => [.. Enumerable.Range(0, (int)View.Count)
        .Select(i => ElementConversion.ToDouble(Element(i), View.Type))];

    /// <summary>Random numbers of a standard normal distribution times the scale.</summary>
    public static HostTensor Normal(string name, ElementType type, long[] shape, int seed, double scale = 1, params ReadOnlySpan<int> axes)
    {
        var random = new Random(seed);
        double[] elements = new double[shape.Aggregate(1L, (product, length) => product * length)];
        for (int i = 0; i < elements.Length; i++)
        {
            elements[i] = scale * Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
        }

        return new HostTensor(name, type, shape, elements, axes);
    }

    /// <summary>Replaces one element, by its row-major index.</summary>
    public void Write(int index, double element)
    {
        Span<byte> target = Element(index);
        switch (View.Type)
        {
            case ElementType.Float64: BinaryPrimitives.WriteDoubleLittleEndian(target, element); break;
            case ElementType.Float16: BinaryPrimitives.WriteHalfLittleEndian(target, (Half)element); break;
            default: ElementConversion.FromFloat([(float)element], View.Type, target); break;
        }
    }

    public void Dispose() => _memory.Dispose();

    private Span<byte> Element(int index)
    {
        long offset = 0;
        for (int axis = View.Rank - 1; axis >= 0; axis--)
        {
            offset += index % (int)View.Shape[axis] * View.Strides[axis];
            index /= (int)View.Shape[axis];
        }

        return _memory.Region.Slice(offset, 1).AsSpan<byte>();
    }
}
