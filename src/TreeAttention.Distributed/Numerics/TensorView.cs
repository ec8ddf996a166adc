using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>A tensor in host memory that somebody else owns (a mapped file, an array): address, element type, shape, strides.</summary>
/// <remarks>Strides are in elements, one for each axis, so that both storage orders and both tensor layouts are one thing.</remarks>
public sealed class TensorView
{
    /// <summary>Describes memory that stays valid as long as the view is used.</summary>
    /// <param name="name">What messages call the tensor: <c>query</c>, <c>key</c>, a file name.</param>
    /// <param name="address">First element.</param>
    /// <param name="type">Element type.</param>
    /// <param name="shape">Length of each axis.</param>
    /// <param name="strides">Elements from one index of an axis to the next; row-major when null.</param>
    public TensorView(string name, nint address, ElementType type, long[] shape, long[]? strides = null)
    {
        ArgumentNullException.ThrowIfNull(name);
        ArgumentNullException.ThrowIfNull(shape);
        if (strides is not null && strides.Length != shape.Length)
        {
            throw new ShapeMismatchException($"{name} has {shape.Length} axes and {strides.Length} strides: there is one for each.", nameof(strides));
        }

        Name = name;
        Address = address;
        Type = type;
        Shape = shape;
        Strides = strides ?? RowMajor(shape);
    }

    /// <summary>What messages call the tensor.</summary>
    public string Name { get; }

    /// <summary>First element.</summary>
    public nint Address { get; }

    /// <summary>Element type.</summary>
    public ElementType Type { get; }

    /// <summary>Length of each axis.</summary>
    public long[] Shape { get; }

    /// <summary>Elements from one index of an axis to the next.</summary>
    public long[] Strides { get; }

    /// <summary>[heads] what the elements of each head, the third of four axes, are to be multiplied by; null: by 1.</summary>
    /// <remarks>Only a tensor of a type with scales has any: its elements are numbers that were divided by these.</remarks>
    public float[]? HeadScales { get; private init; }

    /// <summary>Where the bytes are read from in place of the memory, which may vanish; null: the memory stays.</summary>
    internal ITensorSource? Source { get; init; }

    /// <summary>Number of axes.</summary>
    public int Rank => Shape.Length;

    /// <summary>Number of elements.</summary>
    public long Count => Shape.Aggregate(1L, (product, length) => product * length);

    /// <summary>The shape as text: <c>[1, 16, 4, 64]</c>.</summary>
    public string ShapeText => $"[{string.Join(", ", Shape)}]";

    /// <summary>Name, type and shape: <c>key bf16 [1, 16, 4, 64]</c>.</summary>
    public override string ToString() => $"{Name} {Type.ShortName()} {ShapeText}";

    /// <summary>The same memory, each head's elements multiplied by its scale.</summary>
    /// <exception cref="ShapeMismatchException">There are not four axes, or not as many scales as the third is long.</exception>
    public TensorView WithHeadScales(float[] scales)
    {
        if (!StorageType.Of(Type).HasScales || Rank != 4 || Shape[2] != scales.Length)
        {
            throw new ShapeMismatchException(
                $"{scales.Length} scales do not fit {Name} {ShapeText} of {Type.ShortName()}: {StorageType.ScaledNames("and")} has one for each head, the third of four axes.");
        }

        return new TensorView(Name, Address, Type, Shape, Strides) { Source = Source, HeadScales = scales };
    }

    /// <summary>The same memory with two axes exchanged. Scales of heads must come after it.</summary>
    public TensorView SwapAxes(int first, int second)
    {
        long[] shape = [.. Shape];
        long[] strides = [.. Strides];
        (shape[first], shape[second]) = (shape[second], shape[first]);
        (strides[first], strides[second]) = (strides[second], strides[first]);
        return new TensorView(Name, Address, Type, shape, strides) { Source = Source };
    }

    /// <summary>The same memory with one more axis, of length 1, before all others.</summary>
    public TensorView AddFirstAxis() => new(Name, Address, Type, [1, .. Shape], [Count, .. Strides]) { Source = Source };

    /// <summary>The first <paramref name="length"/> indices of the last axis: MLA's values inside its keys.</summary>
    public TensorView TruncateLastAxis(string name, int length)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, Shape[^1]);
        long[] shape = [.. Shape];
        shape[^1] = length;
        return new TensorView(name, Address, Type, shape, Strides) { Source = Source, HeadScales = HeadScales };
    }

    /// <summary>Some of the indices of the second axis, the length.</summary>
    public TensorView PartOfLength(int first, int count)
    {
        long[] shape = [.. Shape];
        shape[1] = count;
        return new TensorView(Name, Address + (nint)(first * Strides[1] * Type.SizeInBytes()), Type, shape, Strides) { Source = Source, HeadScales = HeadScales };
    }

    /// <summary>Elements from the first to the element at these indices.</summary>
    public long OffsetOf(ReadOnlySpan<long> indices)
    {
        long offset = 0;
        for (int axis = 0; axis < indices.Length; axis++)
        {
            offset += indices[axis] * Strides[axis];
        }

        return offset;
    }

    private static long[] RowMajor(long[] shape)
    {
        long[] strides = new long[shape.Length];
        long stride = 1;
        for (int axis = shape.Length - 1; axis >= 0; axis--)
        {
            strides[axis] = stride;
            stride *= Math.Max(1, shape[axis]);
        }

        return strides;
    }
}
