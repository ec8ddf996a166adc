using System;
using System.Buffers.Binary;
using System.Globalization;
using System.Numerics;

namespace TreeAttention.Distributed.Numerics;

/// <summary>128 bits that tell bytes from others: whether files, options or results differ by accident, and what a compiled kernel is kept under.</summary>
/// <remarks>
/// Two sums of 64 bits over words of 8 bytes, each multiplied and turned after every word, with constants of xxHash (Collet).
/// Without a key: whoever wants two texts with one fingerprint can make them. The cryptography of .NET would need OpenSSL on the
/// machine, and ends the process where there is none.
/// </remarks>
internal sealed class Fingerprint
{
    private const ulong FirstFactor = 0x9E3779B185EBCA87;
    private const ulong SecondFactor = 0xC2B2AE3D27D4EB4F;
    private const int WordBytes = sizeof(ulong);

    private readonly byte[] _rest = new byte[WordBytes];
    private ulong _first = FirstFactor;
    private ulong _second = SecondFactor;
    private long _length;

    /// <summary>The fingerprint of bytes.</summary>
    public static UInt128 Of(ReadOnlySpan<byte> bytes)
    {
        var fingerprint = new Fingerprint();
        fingerprint.Add(bytes);
        return fingerprint.Value();
    }

    /// <summary>The first 64 bits of the fingerprint of bytes, as 16 hexadecimal digits.</summary>
    public static string TextOf(ReadOnlySpan<byte> bytes) => Shorten(Of(bytes));

    /// <summary>The first 64 bits of a fingerprint, as 16 hexadecimal digits.</summary>
    public static string Shorten(UInt128 fingerprint) => ((ulong)(fingerprint >> 64)).ToString("x16", CultureInfo.InvariantCulture);

    /// <summary>Adds bytes after those of before; where one call ends and the next begins makes no difference.</summary>
    public void Add(ReadOnlySpan<byte> bytes)
    {
        int held = (int)(_length % WordBytes);
        _length += bytes.Length;
        if (held > 0)
        {
            int taken = Math.Min(WordBytes - held, bytes.Length);
            bytes[..taken].CopyTo(_rest.AsSpan(held));
            bytes = bytes[taken..];
            if (held + taken < WordBytes)
            {
                return;
            }

            AddWord(BinaryPrimitives.ReadUInt64LittleEndian(_rest));
        }

        for (; bytes.Length >= WordBytes; bytes = bytes[WordBytes..])
        {
            AddWord(BinaryPrimitives.ReadUInt64LittleEndian(bytes));
        }

        bytes.CopyTo(_rest);
    }

    /// <summary>The fingerprint of all that was added; nothing can be added afterwards.</summary>
    public UInt128 Value()
    {
        _rest.AsSpan((int)(_length % WordBytes)).Clear();
        AddWord(BinaryPrimitives.ReadUInt64LittleEndian(_rest));
        AddWord((ulong)_length);
        ulong first = Mix(_first ^ BitOperations.RotateLeft(_second, 32));
        return new UInt128(first, Mix(_second + first));
    }

    private void AddWord(ulong word)
    {
        _first = BitOperations.RotateLeft((_first ^ word) * FirstFactor, 31);
        _second = BitOperations.RotateLeft((_second + word) * SecondFactor, 27);
    }

    private static ulong Mix(ulong value)
    {
        value = (value ^ (value >> 33)) * SecondFactor;
        value = (value ^ (value >> 29)) * FirstFactor;
        return value ^ (value >> 32);
    }
}
