using System;
using System.Buffers.Binary;
using System.Globalization;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;

namespace TreeAttention.Runtime.Files;

/// <summary>Writes a row-major float32 tensor of any size as .npy 1.0; the file appears whole or not at all.</summary>
/// <remarks>
/// <see cref="CreateOutput"/> before the work, then <see cref="Begin"/>, <see cref="Write"/> in as many pieces as wished,
/// <see cref="Commit"/>. Disposing without a commit leaves nothing behind and an earlier file as it was.
/// </remarks>
internal sealed class NpyWriter : IDisposable
{
    private const int BufferBytes = 1 << 18;
    private const int FixedBytes = 10;
    private const int Alignment = 64;

    // numpy leaves this room, so that a file may grow along its first axis without moving the data.
    private const int RoomForFirstLength = 21;

    private readonly OutputFile _output;
    private readonly byte[] _buffer = new byte[BufferBytes];
    private int _buffered;
    private long? _missing;

    private NpyWriter(OutputFile output) => _output = output;

    /// <summary>Finds out, before any work is done, whether the file can be written. Leaves nothing behind.</summary>
    /// <param name="path">The file. A symbolic link is followed; a pipe or <c>/dev/null</c> is written directly.</param>
    /// <param name="force">Replaces an existing file, at the commit and not before.</param>
    /// <exception cref="FaultException">
    /// It exists and <paramref name="force"/> is false, it is a directory or a disk, or its directory is missing or not writable (73).
    /// </exception>
    public static NpyWriter CreateOutput(string path, bool force) => new(new OutputFile(path, force));

    /// <summary>Writes the header and reserves room for the whole tensor.</summary>
    /// <param name="shape">Length of each axis; none for a single number.</param>
    /// <exception cref="FaultException">The disk has no room (74), or the file cannot be created any more (73).</exception>
    /// <exception cref="ArgumentOutOfRangeException">A length is negative, or the lengths make 2^63 bits or more.</exception>
    public void Begin(params ReadOnlySpan<long> shape)
    {
        foreach (long length in shape)
        {
            ArgumentOutOfRangeException.ThrowIfNegative(length, nameof(shape));
        }

        if (_missing is not null)
        {
            throw new InvalidOperationException("A file holds one tensor, and it has begun.");
        }

        long elements = TensorRecord.Elements(shape, 8 * sizeof(float))
            ?? throw new ArgumentOutOfRangeException(nameof(shape), "A tensor has fewer than 2^63 bits.");
        byte[] header = Header(shape);
        _output.Open(header.Length + (elements * sizeof(float)));
        _missing = elements;
        Append(header);
    }

    /// <summary>Writes the next elements in row-major order.</summary>
    /// <exception cref="FaultException">The disk is full, or writing failed (74).</exception>
    /// <exception cref="InvalidOperationException">The tensor has not begun, or has fewer elements than that left.</exception>
    public void Write(ReadOnlySpan<float> values)
    {
        if (_missing is not { } missing || values.Length > missing)
        {
            throw new InvalidOperationException($"{values.Length} elements were written where {_missing ?? 0} are missing.");
        }

        Append(MemoryMarshal.AsBytes(values));
        _missing = missing - values.Length;
    }

    /// <summary>Hands everything to the disk, so that only putting the file in its place is left.</summary>
    /// <exception cref="FaultException">Writing failed (74).</exception>
    /// <exception cref="InvalidOperationException">Elements are missing.</exception>
    public void Complete()
    {
        RequireAll();
        Flush();
    }

    /// <summary>Makes the file durable and puts it in its place.</summary>
    /// <exception cref="FaultException">Writing failed (74), or a file has appeared there meanwhile (73).</exception>
    /// <exception cref="InvalidOperationException">Elements are missing; the file is not put in its place.</exception>
    public void Commit()
    {
        Complete();
        _output.Commit();
    }

    /// <inheritdoc/>
    public void Dispose() => _output.Dispose();

    private void Append(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length > BufferBytes - _buffered)
        {
            Flush();
        }

        if (bytes.Length >= BufferBytes)
        {
            _output.Append(bytes);
            return;
        }

        bytes.CopyTo(_buffer.AsSpan(_buffered));
        _buffered += bytes.Length;
    }

    private void RequireAll()
    {
        if (_missing != 0)
        {
            throw new InvalidOperationException($"{(_missing is null ? "All" : _missing)} elements of the tensor are missing.");
        }
    }

    private void Flush()
    {
        _output.Append(_buffer.AsSpan(0, _buffered));
        _buffered = 0;
    }

    // To the byte what numpy.save writes.
    private static byte[] Header(ReadOnlySpan<long> shape)
    {
        string[] lengths = [.. shape.ToArray().Select(length => length.ToString(CultureInfo.InvariantCulture))];
        string tuple = lengths.Length == 1 ? $"({lengths[0]},)" : $"({string.Join(", ", lengths)})";
        string dictionary = $"{{'descr': '<f4', 'fortran_order': False, 'shape': {tuple}, }}";
        string room = lengths.Length == 0 ? "" : new string(' ', RoomForFirstLength - lengths[0].Length);
        int unpadded = FixedBytes + dictionary.Length + room.Length + 1;
        string padding = new(' ', Alignment - (unpadded % Alignment));
        byte[] header = new byte[unpadded + padding.Length];
        NpyHeader.Magic.CopyTo(header);
        header[NpyHeader.Magic.Length] = 1;
        BinaryPrimitives.WriteUInt16LittleEndian(header.AsSpan(FixedBytes - sizeof(ushort)), (ushort)(header.Length - FixedBytes));
        _ = Encoding.ASCII.GetBytes($"{dictionary}{room}{padding}\n", header.AsSpan(FixedBytes));
        return header;
    }
}
