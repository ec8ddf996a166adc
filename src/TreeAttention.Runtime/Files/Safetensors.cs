using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using System.Text.Unicode;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>The header of a safetensors file: its length, then JSON that names every tensor and leaves no byte of data unnamed.</summary>
internal static class SafetensorsHeader
{
    /// <summary>Longest header the format allows.</summary>
    private const int LongestJson = 100_000_000;

    private const int MostNamesShown = 12;

    /// <summary>Reads and checks the whole header and finds one tensor in it.</summary>
    /// <param name="file">The file.</param>
    /// <param name="tensor">The tensor's name; null takes the only one.</param>
    /// <param name="faults">Words the faults.</param>
    /// <exception cref="FaultException">The header breaks a rule, the file is truncated, or there is no such tensor (65).</exception>
    public static TensorRecord Read(MappedFile file, string? tensor, TensorFileFaults faults)
    {
        ReadOnlySpan<byte> json = ReadJson(file, faults);
        SafetensorsParser parser = Parse(json, file, tensor, faults);
        SafetensorsEntry entry = parser.Found is { } found && (tensor is not null || parser.Names.Count == 1)
            ? found
            : throw NoSuchTensor(tensor, parser.Names, json, faults);
        ElementType type = SafetensorsElementTypes.Type(entry.TypeName) ?? throw faults.Malformed(
            sizeof(long) + entry.Name.At,
            $"the data type of {TensorFileFaults.Quote(entry.Name.In(json))}",
            entry.TypeName,
            $"the types read are {SafetensorsElementTypes.Readable}",
            "Convert the tensor to one of them");
        return new TensorRecord(type, entry.Shape, ColumnMajor: false, sizeof(long) + json.Length + entry.Begin);
    }

    /// <summary>The file, whose header is whole, has a tensor of this name.</summary>
    /// <exception cref="FaultException">The header breaks a rule, or the file is truncated (65).</exception>
    public static bool Holds(MappedFile file, string tensor, TensorFileFaults faults) =>
        Parse(ReadJson(file, faults), file, tensor, faults).Found is not null;

    private static SafetensorsParser Parse(ReadOnlySpan<byte> json, MappedFile file, string? tensor, TensorFileFaults faults)
    {
        var parser = new SafetensorsParser(json, sizeof(long), tensor, faults);
        parser.Read();
        RequireOneCover(parser.Extents, sizeof(long) + json.Length, file.Length, faults);
        RequireNamesOnce(parser.Names, json, faults);
        return parser;
    }

    private static ReadOnlySpan<byte> ReadJson(MappedFile file, TensorFileFaults faults)
    {
        if (file.Length < sizeof(ulong))
        {
            throw faults.Truncated(0, "the format's fixed start", $"{sizeof(ulong)}", file.Length);
        }

        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(file.First(sizeof(ulong)));
        if (length > LongestJson)
        {
            throw faults.Malformed(0, "the header length", $"{length}", $"a header has at most {LongestJson} bytes");
        }

        if (sizeof(ulong) + (long)length > file.Length)
        {
            throw faults.Truncated(0, "the header length", $"{sizeof(ulong) + length}", file.Length);
        }

        ReadOnlySpan<byte> json = file.First(sizeof(ulong) + (int)length)[sizeof(ulong)..];
        if (!json.StartsWith("{"u8))
        {
            throw faults.Malformed(
                sizeof(ulong), "the header", TensorFileFaults.Quote(json[..Math.Min(1, json.Length)]), "a header begins with '{'");
        }

        return Utf8.IsValid(json)
            ? json
            : throw faults.Malformed(sizeof(ulong), "the header", "not UTF-8", "a header is JSON in UTF-8");
    }

    // Every byte behind the header belongs to exactly one tensor.
    private static void RequireOneCover(
        List<(long Begin, long End, int At)> extents, long dataAt, long fileLength, TensorFileFaults faults)
    {
        extents.Sort();
        long covered = 0;
        foreach ((long begin, long end, int at) in extents)
        {
            if (begin != covered)
            {
                throw faults.Malformed(
                    sizeof(ulong) + at,
                    "'data_offsets'",
                    $"[{begin}, {end}] where {covered} bytes are taken by the tensors before",
                    begin < covered ? "tensors do not overlap" : "tensors leave no bytes between them");
            }

            covered = end;
        }

        long available = fileLength - dataAt;
        if (covered > available)
        {
            (_, long end, int at) = extents[^1];
            // A sum that overflows is shown exactly.
            throw faults.Truncated(sizeof(ulong) + at, "the end of 'data_offsets'", $"{(Int128)dataAt + end}", fileLength);
        }

        if (covered < available)
        {
            throw faults.Malformed(
                dataAt + covered, "the data", $"{available - covered} bytes that no tensor names", "the last tensor ends with the file");
        }
    }

    private static void RequireNamesOnce(List<JsonName> names, ReadOnlySpan<byte> json, TensorFileFaults faults)
    {
        // In a copy, since messages show the names in the order of the file.
        if (JsonName.FindTwice([.. names], json) is { } twice)
        {
            throw faults.Malformed(
                sizeof(ulong) + twice.At,
                "a tensor name",
                $"{TensorFileFaults.Quote(twice.In(json))} for the second time",
                "every name stands once");
        }
    }

    private static FaultException NoSuchTensor(string? tensor, List<JsonName> names, ReadOnlySpan<byte> json, TensorFileFaults faults)
    {
        var shown = new List<string>();
        foreach (JsonName name in names.Take(MostNamesShown))
        {
            shown.Add(TensorFileFaults.Quote(name.In(json)));
        }

        string others = names.Count > MostNamesShown ? $" and {names.Count - MostNamesShown} more" : "";
        string what = tensor is null ? "no tensor was named" : $"it holds no tensor {TensorFileFaults.Quote(tensor)}";
        return names.Count == 0
            ? faults.Unnamed("it holds no tensor at all", "Give another file")
            : faults.Unnamed($"{what}; it holds {string.Join(", ", shown)}{others}", "Give FILE.safetensors:TENSOR with one of these names");
    }
}

/// <summary>One tensor of a safetensors header as its bytes say: data type, shape, and where its data lie behind the header.</summary>
/// <param name="Name">Where its name stands in the header.</param>
/// <param name="TypeName">Data type, as the format names it.</param>
/// <param name="Shape">Length of each axis.</param>
/// <param name="Begin">First byte, counted from the end of the header.</param>
/// <param name="End">The byte after its last.</param>
internal readonly record struct SafetensorsEntry(JsonName Name, string TypeName, long[] Shape, long Begin, long End);

/// <summary>The element types of safetensors files: every name the format knows, and the ones that are read.</summary>
internal static class SafetensorsElementTypes
{
    /// <summary>The names that are read, for messages.</summary>
    public static readonly string Readable = StorageType.List(
        StorageType.All.Where(type => type.SafetensorsName is not null).OrderByDescending(type => type.IsFloatingPoint).Select(type => type.SafetensorsName!),
        "and");

    /// <summary>Every name of the format and the bits of one element.</summary>
    /// <remarks>Types that are not read are sized all the same: they may stand beside the tensor that is.</remarks>
    public static readonly (string Name, int Bits)[] All =
    [
        ("F32", 32), ("F16", 16), ("BF16", 16), ("F64", 64), ("F8_E4M3", 8), ("BOOL", 8), ("I32", 32), ("I64", 64),
        ("U8", 8), ("I8", 8), ("U16", 16), ("I16", 16), ("U32", 32), ("U64", 64), ("C64", 64), ("F4", 4),
        ("F6_E2M3", 6), ("F6_E3M2", 6), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8),
    ];

    /// <summary>The name of an element type that is written.</summary>
    public static string NameOf(ElementType type) => StorageType.Of(type).SafetensorsName!;

    /// <summary>The element type a name stands for; null when it is not read.</summary>
    public static ElementType? Type(string name) => StorageType.All.FirstOrDefault(type => type.SafetensorsName == name)?.Type;
}

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

    private static long BytesOf(ElementType type, long[] shape) => type.BytesFor(shape.Aggregate(1L, (count, length) => count * length));

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
