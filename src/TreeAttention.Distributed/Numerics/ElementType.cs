using System;

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
}

/// <summary>Sizes and names of <see cref="ElementType"/>.</summary>
public static class ElementTypes
{
    /// <summary>Bytes of one element.</summary>
    public static int SizeInBytes(this ElementType type) => type switch
    {
        ElementType.Byte or ElementType.Boolean or ElementType.Float8E4M3 => 1,
        ElementType.Float16 or ElementType.BFloat16 => 2,
        ElementType.Int32 or ElementType.Float32 => 4,
        ElementType.Int64 or ElementType.Float64 => 8,
        _ => throw new ArgumentOutOfRangeException(nameof(type), type, "No such element type."),
    };

    /// <summary>True for the floating-point types.</summary>
    public static bool IsFloatingPoint(this ElementType type) => type is ElementType.Float64 or ElementType.Float32
        or ElementType.Float16 or ElementType.BFloat16 or ElementType.Float8E4M3;

    /// <summary>The short name users write and read: <c>f32</c>, <c>f16</c>, <c>bf16</c>, <c>f8e4m3</c>.</summary>
    public static string ShortName(this ElementType type) => type switch
    {
        ElementType.Byte => "u8",
        ElementType.Boolean => "bool",
        ElementType.Int32 => "i32",
        ElementType.Int64 => "i64",
        ElementType.Float64 => "f64",
        ElementType.Float32 => "f32",
        ElementType.Float16 => "f16",
        ElementType.BFloat16 => "bf16",
        ElementType.Float8E4M3 => "f8e4m3",
        _ => throw new ArgumentOutOfRangeException(nameof(type), type, "No such element type."),
    };
}
