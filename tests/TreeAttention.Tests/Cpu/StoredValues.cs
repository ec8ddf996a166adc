using System;
using TreeAttention.Distributed;

namespace TreeAttention.Tests;

/// <summary>Single elements as a storage type holds them.</summary>
internal static class StoredValues
{
    internal static float Round(float value, ElementType type) => type switch
    {
        ElementType.Float32 => value,
        ElementType.Float16 => (float)(Half)value,
        _ => BitConverter.UInt32BitsToSingle((uint)Bits(value, type) << 16),
    };

    internal static ushort Bits(float value, ElementType type)
    {
        if (type == ElementType.Float16)
        {
            return BitConverter.HalfToUInt16Bits((Half)value);
        }

        uint bits = BitConverter.SingleToUInt32Bits(value);
        return float.IsNaN(value) ? (ushort)0x7fc0 : (ushort)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }

    internal static void Write(Region contents, long at, float value)
    {
        if (contents.Type == ElementType.Float32)
        {
            contents.Slice(at, 1).AsSpan<float>()[0] = value;
        }
        else
        {
            contents.Slice(at, 1).AsSpan<ushort>()[0] = Bits(value, contents.Type);
        }
    }
}
