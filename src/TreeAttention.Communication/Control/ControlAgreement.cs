using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace TreeAttention.Communication;

/// <summary>The parts of one agreement after the other, as they come in at rank 0, and their form on the wire.</summary>
internal sealed class ControlAgreement(int size)
{
    private readonly Dictionary<int, byte[]?[]> _open = [];

    /// <summary>Takes a rank's part; gives all parts when it was the last one missing, else null.</summary>
    internal byte[][]? Add(int number, int rank, byte[] part)
    {
        if (!_open.TryGetValue(number, out byte[]?[]? parts))
        {
            parts = new byte[size][];
            _open.Add(number, parts);
        }

        parts[rank] = part;
        if (parts.Contains(null))
        {
            return null;
        }

        _open.Remove(number);
        return parts!;
    }

    /// <summary>One part with the number of its agreement.</summary>
    internal static byte[] Pack(int number, ReadOnlySpan<byte> part)
    {
        byte[] packed = new byte[sizeof(int) + part.Length];
        BinaryPrimitives.WriteInt32LittleEndian(packed, number);
        part.CopyTo(packed.AsSpan(sizeof(int)));
        return packed;
    }

    /// <summary>All parts with the number of their agreement.</summary>
    internal static byte[] PackAll(int number, byte[][] parts)
    {
        using var packed = new MemoryStream();
        using var writer = new BinaryWriter(packed);
        writer.Write(number);
        foreach (byte[] part in parts)
        {
            writer.Write(part.Length);
            writer.Write(part);
        }

        return packed.ToArray();
    }

    internal static int NumberOf(ReadOnlySpan<byte> packed) => BinaryPrimitives.ReadInt32LittleEndian(packed);

    internal static byte[] PartOf(ReadOnlySpan<byte> packed) => packed[sizeof(int)..].ToArray();

    internal static byte[][] PartsOf(ReadOnlySpan<byte> packed, int size)
    {
        byte[][] parts = new byte[size][];
        ReadOnlySpan<byte> rest = packed[sizeof(int)..];
        for (int rank = 0; rank < size; rank++)
        {
            int bytes = BinaryPrimitives.ReadInt32LittleEndian(rest);
            parts[rank] = rest.Slice(sizeof(int), bytes).ToArray();
            rest = rest[(sizeof(int) + bytes)..];
        }

        return parts;
    }
}
