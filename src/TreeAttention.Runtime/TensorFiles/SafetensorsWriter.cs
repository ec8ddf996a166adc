using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Writes a safetensors file of several tensors, in the order in which they were declared; it appears whole or not at all.</summary>
internal sealed class SafetensorsWriter : IDisposable
{
    private const int Alignment = 8;

    private readonly OutputFile _output;
    private readonly List<(string Name, ElementType Type, long[] Shape)> _tensors = [];

    /// <summary>Finds out whether the file can be written.</summary>
    /// <exception cref="FaultException">It exists and may not be overwritten, or cannot be created (73).</exception>
    public SafetensorsWriter(string path, bool force) => _output = new OutputFile(path, force);

    /// <summary>Declares the next tensor. All are declared before the first is written.</summary>
    public void Declare(string name, ElementType type, params long[] shape) => _tensors.Add((name, type, shape));

    /// <summary>Writes the header.</summary>
    /// <exception cref="FaultException">The disk has no room for all of it (74).</exception>
    public void Begin()
    {
        using var stream = new MemoryStream();
        using (var json = new Utf8JsonWriter(stream))
        {
            json.WriteStartObject();
            long offset = 0;
            foreach ((string name, ElementType type, long[] shape) in _tensors)
            {
                json.WriteStartObject(name);
                json.WriteString("dtype", SafetensorsElementTypes.NameOf(type));
                WriteNumbers(json, "shape", shape);
                long end = offset + BytesOf(type, shape);
                WriteNumbers(json, "data_offsets", [offset, end]);
                json.WriteEndObject();
                offset = end;
            }

            json.WriteEndObject();
        }

        // Spaces after the JSON bring the data to an aligned offset.
        byte[] header = [.. stream.ToArray(), .. Enumerable.Repeat((byte)' ', (int)(-stream.Length & (Alignment - 1)))];
        byte[] length = new byte[sizeof(ulong)];
        BinaryPrimitives.WriteUInt64LittleEndian(length, (ulong)header.Length);
        _output.Open(length.Length + header.Length + _tensors.Sum(tensor => BytesOf(tensor.Type, tensor.Shape)));
        _output.Append(length);
        _output.Append(header);
    }

    /// <summary>Writes the next bytes of the tensors.</summary>
    /// <exception cref="FaultException">Writing failed (74).</exception>
    public void Write(ReadOnlySpan<byte> bytes) => _output.Append(bytes);

    /// <summary>Lets the file appear.</summary>
    /// <exception cref="FaultException">The disk is full (74), or a file has appeared there meanwhile (73).</exception>
    public void Commit() => _output.Commit();

    /// <inheritdoc/>
    public void Dispose() => _output.Dispose();

    private static long BytesOf(ElementType type, long[] shape) => shape.Aggregate((long)type.SizeInBytes(), (bytes, length) => bytes * length);

    private static void WriteNumbers(Utf8JsonWriter json, string name, long[] numbers)
    {
        json.WriteStartArray(name);
        foreach (long number in numbers)
        {
            json.WriteNumberValue(number);
        }

        json.WriteEndArray();
    }
}
