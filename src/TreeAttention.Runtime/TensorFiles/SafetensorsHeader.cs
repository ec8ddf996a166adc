using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Linq;
using System.Text.Unicode;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

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
        var parser = new SafetensorsParser(json, sizeof(long), tensor, faults);
        parser.Read();
        RequireOneCover(parser.Extents, sizeof(long) + json.Length, file.Length, faults);
        RequireNamesOnce(parser.Names, json, faults);
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
