using System;
using System.Buffers.Binary;
using System.Text;

namespace TreeAttention.Communication;

/// <summary>The payload of a heartbeat: operations entered (8 bytes), milliseconds in this state (4), name of the operation (may be empty).</summary>
internal static class ControlBeat
{
    internal const int MostBytes = 128;
    private const int NameAt = 12;

    /// <summary>Writes a beat and returns its length. A long name is cut.</summary>
    internal static int Write(Span<byte> beat, long count, TimeSpan standing, string? operation)
    {
        BinaryPrimitives.WriteInt64LittleEndian(beat, count);
        BinaryPrimitives.WriteInt32LittleEndian(beat[8..], (int)Math.Min(standing.TotalMilliseconds, int.MaxValue));
        Encoding.UTF8.TryGetBytes(operation.AsSpan(0, Math.Min(operation?.Length ?? 0, (MostBytes - NameAt) / 3)), beat[NameAt..], out int bytes);
        return NameAt + bytes;
    }

    internal static (long Count, TimeSpan Standing) Read(ReadOnlySpan<byte> beat) =>
        (BinaryPrimitives.ReadInt64LittleEndian(beat), TimeSpan.FromMilliseconds(BinaryPrimitives.ReadInt32LittleEndian(beat[8..])));

    /// <summary>The name of the operation; the known string where it has not changed, so that beats allocate nothing.</summary>
    internal static string? ReadOperation(ReadOnlySpan<byte> beat, string? known)
    {
        ReadOnlySpan<byte> name = beat[NameAt..];
        Span<char> characters = stackalloc char[MostBytes];
        int length = Encoding.UTF8.GetChars(name, characters);
        return name.IsEmpty ? null
            : known != null && characters[..length].SequenceEqual(known) ? known
            : new string(characters[..length]);
    }
}
