using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;

namespace TreeAttention.Communication.Control;

/// <summary>The agreements of the group, one after the other: their parts as they come in at rank 0, the complete ones, and their form on the wire.</summary>
internal sealed class ControlAgreement(int size)
{
    private readonly object _gate = new();
    private readonly Dictionary<int, byte[]?[]> _open = [];
    private readonly Dictionary<int, byte[][]> _complete = [];

    /// <summary>Takes a rank's part; gives all parts when it was the last one missing, else null.</summary>
    internal byte[][]? Add(int number, int rank, byte[] part)
    {
        lock (_gate)
        {
            return AddLocked(number, rank, part);
        }
    }

    /// <summary>All parts are known: whoever waits for them goes on.</summary>
    internal void Complete(int number, byte[][] parts)
    {
        lock (_gate)
        {
            _complete[number] = parts;
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>Something has happened because of which waiting may be in vain.</summary>
    internal void Wake()
    {
        lock (_gate)
        {
            Monitor.PulseAll(_gate);
        }
    }

    /// <summary>Waits for all parts.</summary>
    /// <param name="number">The agreement.</param>
    /// <param name="inVain">Gives what to throw when they will never come, else null.</param>
    internal byte[][] Await(int number, Func<Exception?> inVain)
    {
        lock (_gate)
        {
            byte[][]? parts;
            while (!_complete.Remove(number, out parts))
            {
                if (inVain() is Exception reason)
                {
                    throw reason;
                }

                Monitor.Wait(_gate, 500);
            }

            return parts;
        }
    }

    private byte[][]? AddLocked(int number, int rank, byte[] part)
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
