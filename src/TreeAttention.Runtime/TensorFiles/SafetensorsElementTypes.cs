using System;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>The element types of safetensors files: every name the format knows, and the ones that are read.</summary>
internal static class SafetensorsElementTypes
{
    /// <summary>The names that are read, for messages.</summary>
    public const string Readable = "F64, F32, F16, BF16, F8_E4M3, BOOL, I32 and I64";

    /// <summary>Every name of the format and the bits of one element.</summary>
    /// <remarks>Types that are not read are sized all the same: they may stand beside the tensor that is.</remarks>
    public static readonly (string Name, int Bits)[] All =
    [
        ("F32", 32), ("F16", 16), ("BF16", 16), ("F64", 64), ("F8_E4M3", 8), ("BOOL", 8), ("I32", 32), ("I64", 64),
        ("U8", 8), ("I8", 8), ("U16", 16), ("I16", 16), ("U32", 32), ("U64", 64), ("C64", 64), ("F4", 4),
        ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8),
    ];

    /// <summary>The name of an element type that is written.</summary>
    public static string NameOf(ElementType type) => Array.Find(All, entry => Type(entry.Name) == type).Name;

    /// <summary>The element type a name stands for; null when it is not read.</summary>
    public static ElementType? Type(string name) => name switch
    {
        "F64" => ElementType.Float64,
        "F32" => ElementType.Float32,
        "F16" => ElementType.Float16,
        "BF16" => ElementType.BFloat16,
        "F8_E4M3" => ElementType.Float8E4M3,
        "BOOL" => ElementType.Boolean,
        "I32" => ElementType.Int32,
        "I64" => ElementType.Int64,
        _ => null,
    };
}
