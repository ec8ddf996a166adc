using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>What one element of a region or a tensor is, as it lies in memory (little endian).</summary>
public enum ElementType
{
    /// <summary>A raw byte.</summary>
    Byte,

    /// <summary>A truth value of one byte, 0 or 1.</summary>
    Boolean,

    /// <summary>A signed 32-bit integer.</summary>
    Int32,

    /// <summary>A signed 64-bit integer.</summary>
    Int64,

    /// <summary>IEEE 754 binary64.</summary>
    Float64,

    /// <summary>IEEE 754 binary32.</summary>
    Float32,

    /// <summary>IEEE 754 binary16.</summary>
    Float16,

    /// <summary>The upper half of a binary32: 8 bits of exponent, 7 of fraction.</summary>
    BFloat16,

    /// <summary>8-bit float: 4 bits of exponent, 3 of fraction, no infinity (the "FN" form).</summary>
    Float8E4M3,

    /// <summary>Symmetric signed 8-bit integer: -127 to 127; -128 stands for NaN.</summary>
    Int8,

    /// <summary>A signed 16-bit integer.</summary>
    Int16,

    /// <summary>An unsigned 16-bit integer.</summary>
    UInt16,

    /// <summary>An unsigned 32-bit integer.</summary>
    UInt32,

    /// <summary>An unsigned 64-bit integer.</summary>
    UInt64,
}

/// <summary>Sizes and names of <see cref="ElementType"/>.</summary>
internal static class ElementTypes
{
    /// <summary>Bytes of one element; 0 of one that has fewer than eight bits.</summary>
    /// <exception cref="ArgumentOutOfRangeException">There is no such element type.</exception>
    public static int SizeInBytes(this ElementType type) => StorageType.Of(type).BitsPerElement / 8;

    /// <summary>True for the floating-point types.</summary>
    public static bool IsFloatingPoint(this ElementType type) => StorageType.Of(type).IsFloatingPoint;

    /// <summary>The short name users write and read: <c>f32</c>, <c>f16</c>, <c>bf16</c>, <c>f8e4m3</c>, <c>i8</c>.</summary>
    public static string ShortName(this ElementType type) => StorageType.Of(type).Name;

    /// <summary>All that is known of it.</summary>
    internal static StorageType Entry(this ElementType type) => StorageType.Of(type);

    /// <summary>Bytes of so many elements, of any number of bits.</summary>
    internal static long BytesFor(this ElementType type, long count) => StorageType.Of(type).BytesFor(count);
}
