using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Testing.Cases;

/// <summary>Single elements as a storage type holds them.</summary>
internal static class StoredValues
{
    /// <summary>The number nearest to the value that can be stored with a scale.</summary>
    internal static float Round(float value, ElementType type, float scale = 1f) => type switch
    {
        ElementType.Float8E4M3 or ElementType.Int8 => ToByte(value / scale, type, out _) * scale,
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

    private static float ToByte(float value, ElementType type, out byte encoded)
    {
        Span<byte> bytes = stackalloc byte[1];
        ElementConversion.FromFloat([value], type, bytes);
        encoded = bytes[0];
        return (float)ElementConversion.ToDouble(bytes, type);
    }

    internal static void Write(Region contents, long at, float value)
    {
        if (contents.Type == ElementType.Float32)
        {
            contents.Slice(at, 1).AsSpan<float>()[0] = value;
        }
        else if (contents.Type is ElementType.Float8E4M3 or ElementType.Int8)
        {
            ToByte(value, contents.Type, out contents.Slice(at, 1).AsSpan<byte>()[0]);
        }
        else
        {
            contents.Slice(at, 1).AsSpan<ushort>()[0] = Bits(value, contents.Type);
        }
    }
}
