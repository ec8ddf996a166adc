using System;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>The element types of .npy files: numpy's byte order, kind and size, as in <c>&lt;f4</c>.</summary>
internal static class NpyElementTypes
{
    /// <summary>The element type of a dtype string.</summary>
    /// <exception cref="FaultException">It is not one of those that are read (65); the message says what to do instead.</exception>
    public static ElementType Parse(ReadOnlySpan<byte> descr, long offset, TensorFileFaults faults)
    {
        ReadOnlySpan<byte> kindAndSize = descr.TrimStart("<>=|"u8);
        bool bigEndian = descr.StartsWith(">"u8);
        if (descr.Length - kindAndSize.Length <= 1 && Known(kindAndSize) is { } type && (!bigEndian || type.SizeInBytes() == 1))
        {
            return type;
        }

        (string rule, string wayOut) =
            kindAndSize.StartsWith("O"u8)
                ? ("an object dtype holds pickled Python objects, which are never unpickled", "Save it with .astype('<f4')")
            : kindAndSize.SequenceEqual("V2"u8)
                ? ("raw bytes have no type: .npy cannot say bfloat16", "Save bfloat16 tensors as .safetensors")
            : kindAndSize.SequenceEqual("V1"u8)
                ? ("raw bytes have no type: .npy cannot say float8", "Save float8 tensors as .safetensors")
            : bigEndian && Known(kindAndSize) is not null
                ? ("it is big-endian, and only little-endian files are read", "Save it with .astype(a.dtype.newbyteorder('<'))")
                : ("the types read from .npy are f2, f4, f8, b1, i4 and i8, little-endian",
                    kindAndSize.StartsWith("i"u8) || kindAndSize.StartsWith("u"u8) ? "Save it with .astype('<i8')" : "Save it with .astype('<f4')");
        throw faults.Malformed(offset, "'descr'", TensorFileFaults.Quote(descr), rule, wayOut);
    }

    private static ElementType? Known(ReadOnlySpan<byte> kindAndSize) =>
        kindAndSize.SequenceEqual("f4"u8) ? ElementType.Float32
        : kindAndSize.SequenceEqual("f2"u8) ? ElementType.Float16
        : kindAndSize.SequenceEqual("f8"u8) ? ElementType.Float64
        : kindAndSize.SequenceEqual("b1"u8) ? ElementType.Boolean
        : kindAndSize.SequenceEqual("i4"u8) ? ElementType.Int32
        : kindAndSize.SequenceEqual("i8"u8) ? ElementType.Int64
        : null;
}
