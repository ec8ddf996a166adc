using System;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Where a tensor lies in its file and what it is; checked against the file's length.</summary>
/// <param name="Type">Element type.</param>
/// <param name="Shape">Length of each axis.</param>
/// <param name="ColumnMajor">True when the first axis runs fastest (Fortran order).</param>
/// <param name="Offset">First byte in the file.</param>
internal sealed record TensorRecord(ElementType Type, long[] Shape, bool ColumnMajor, long Offset)
{
    /// <summary>Most axes of a tensor; numpy's own limit.</summary>
    public const int MostAxes = 64;

    /// <summary>Strides in elements.</summary>
    public long[] Strides()
    {
        long[] strides = new long[Shape.Length];
        long stride = 1;
        for (int i = 0; i < strides.Length; i++)
        {
            int axis = ColumnMajor ? i : strides.Length - 1 - i;
            strides[axis] = stride;
            stride *= Math.Max(1, Shape[axis]);
        }

        return strides;
    }

    /// <summary>Elements of a tensor of this shape.</summary>
    /// <returns>
    /// Null when elements or bits pass 2^63, also where an axis of length 0 would hide it: strides must not overflow either.
    /// </returns>
    public static long? Elements(ReadOnlySpan<long> shape, int bitsOfOne)
    {
        Int128 extent = bitsOfOne;
        bool empty = false;
        foreach (long length in shape)
        {
            empty |= length == 0;
            extent *= Math.Max(1, length);
            if (extent > long.MaxValue)
            {
                return null;
            }
        }

        return empty ? 0 : (long)(extent / bitsOfOne);
    }
}
