using System;
using System.Buffers.Binary;
using System.Linq;
using System.Text;

namespace TreeAttention.Testing.Tensors;

/// <summary>Builds tensor files byte by byte, right ones and wrong ones.</summary>
internal static class TensorFileBytes
{
    public static byte[] Npy(string dictionary, ReadOnlySpan<byte> data, byte major = 1, byte minor = 0)
    {
        byte[] text = Encoding.UTF8.GetBytes(dictionary);
        byte[] length = new byte[major == 1 ? 2 : 4];
        if (major == 1)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(length, (ushort)text.Length);
        }
        else
        {
            BinaryPrimitives.WriteUInt32LittleEndian(length, (uint)text.Length);
        }

        return [0x93, .. "NUMPY"u8, major, minor, .. length, .. text, .. data];
    }

    public static byte[] Npy(string descr, bool columnMajor, string shape, ReadOnlySpan<byte> data, byte major = 1) =>
        Npy($"{{'descr': '{descr}', 'fortran_order': {(columnMajor ? "True" : "False")}, 'shape': {shape}, }}\n", data, major);

    public static byte[] Safetensors(string json, ReadOnlySpan<byte> data)
    {
        byte[] text = Encoding.UTF8.GetBytes(json);
        return Safetensors((ulong)text.Length, text, data);
    }

    public static byte[] Safetensors(ulong declared, ReadOnlySpan<byte> header, ReadOnlySpan<byte> data)
    {
        byte[] length = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(length, declared);
        return [.. length, .. header, .. data];
    }

    /// <summary>Little-endian floats.</summary>
    public static byte[] Floats(params float[] values) => [.. values.SelectMany(BitConverter.GetBytes)];
}
