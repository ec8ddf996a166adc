using System;
using System.Collections.Generic;
using System.Text.Json;

namespace TreeAttention.Runtime.Files;

/// <summary>Parses the JSON of a safetensors header in one pass, keeping the extents of all tensors and the whole of one.</summary>
internal ref struct SafetensorsParser
{
    // Header, tensor, list: anything deeper is no header.
    private const int DeepestNesting = 4;

    private readonly ReadOnlySpan<byte> _json;
    private readonly int _fileOffset;
    private readonly string? _wanted;
    private readonly TensorFileFaults _faults;
    private Utf8JsonReader _reader;

    /// <summary>Takes the JSON, which begins at byte <paramref name="fileOffset"/> of its file, and the tensor that is wanted.</summary>
    public SafetensorsParser(ReadOnlySpan<byte> json, int fileOffset, string? wanted, TensorFileFaults faults)
    {
        _json = json;
        _fileOffset = fileOffset;
        _wanted = wanted;
        _faults = faults;
        _reader = new Utf8JsonReader(json, new JsonReaderOptions { MaxDepth = DeepestNesting });
    }

    /// <summary>The names of all tensors, in the order of the file.</summary>
    public List<JsonName> Names { get; } = [];

    /// <summary>For every tensor its first byte, the byte after its last, and where its name stands.</summary>
    public List<(long Begin, long End, int At)> Extents { get; } = [];

    /// <summary>The tensor that is wanted, or the first one when none is named; null when there is none.</summary>
    public SafetensorsEntry? Found { get; private set; }

    /// <summary>Parses the whole text.</summary>
    /// <exception cref="FaultException">It is not JSON, or breaks a rule of the format (65).</exception>
    public void Read()
    {
        try
        {
            ReadTensors();
        }
        catch (InvalidOperationException)
        {
            // The reader checks escapes only when text is compared or copied.
            throw Fault("a name", TensorFileFaults.Quote(_reader.ValueSpan), "a name holds no half of a surrogate pair");
        }
    }

    private void ReadTensors()
    {
        bool? metadata = null;
        Require(JsonTokenType.StartObject, "the header", "an object");
        while (Next() != JsonTokenType.EndObject)
        {
            if (_reader.ValueTextEquals("__metadata__"u8))
            {
                RequireOnce(metadata, "'__metadata__'");
                metadata = true;
                ReadMetadata();
            }
            else
            {
                ReadTensor();
            }
        }

        // Reads what follows, of which only blanks are allowed.
        _ = Next();
    }

    private void ReadMetadata()
    {
        // Some writers leave null where there is no metadata.
        var keys = new List<JsonName>();
        if (Next() == JsonTokenType.Null)
        {
            return;
        }

        RequireToken(JsonTokenType.StartObject, "'__metadata__'", "an object");
        while (Next() != JsonTokenType.EndObject)
        {
            keys.Add(JsonName.Of(_reader));
            Require(JsonTokenType.String, "'__metadata__'", "strings only");
        }

        if (JsonName.FindTwice(keys, _json) is { } twice)
        {
            throw _faults.Malformed(
                _fileOffset + twice.At,
                "'__metadata__'",
                $"{TensorFileFaults.Quote(twice.In(_json))} for the second time",
                "every key stands once");
        }
    }

    private void ReadTensor()
    {
        var name = JsonName.Of(_reader);
        bool wanted = _wanted is null ? Found is null : _reader.ValueTextEquals(_wanted);
        (string Name, int Bits)? type = null;
        long[]? shape = null;
        long[]? offsets = null;
        Require(JsonTokenType.StartObject, "a tensor", "an object");
        while (Next() != JsonTokenType.EndObject)
        {
            if (_reader.ValueTextEquals("dtype"u8))
            {
                RequireOnce(type, "'dtype'");
                type = ReadType();
            }
            else if (_reader.ValueTextEquals("shape"u8))
            {
                RequireOnce(shape, "'shape'");
                shape = ReadNumbers("'shape'", TensorRecord.MostAxes);
            }
            else if (_reader.ValueTextEquals("data_offsets"u8))
            {
                RequireOnce(offsets, "'data_offsets'");
                offsets = ReadNumbers("'data_offsets'", 2);
            }
            else
            {
                throw Fault("a tensor", TensorFileFaults.Quote(_reader.ValueSpan), "it holds 'dtype', 'shape' and 'data_offsets' alone");
            }
        }

        if (type is null || shape is null || offsets is null)
        {
            string missing = type is null ? "'dtype'" : shape is null ? "'shape'" : "'data_offsets'";
            throw Fault(name, $"without {missing}", "a tensor holds 'dtype', 'shape' and 'data_offsets'");
        }

        if (offsets.Length != 2)
        {
            throw Fault(name, $"with {offsets.Length} data_offsets", "data_offsets are a begin and an end");
        }

        Add(new SafetensorsEntry(name, type.Value.Name, shape, offsets[0], offsets[1]), type.Value.Bits, wanted);
    }

    private void Add(SafetensorsEntry entry, int bits, bool wanted)
    {
        string offsets = $"[{entry.Begin}, {entry.End}]";
        if (entry.End < entry.Begin)
        {
            throw Fault(entry.Name, $"at data_offsets {offsets}", "the end is not before the begin");
        }

        string shape = $"[{string.Join(", ", entry.Shape)}] of {entry.TypeName}";
        if (TensorRecord.Elements(entry.Shape, bits) is not { } elements)
        {
            throw Fault(entry.Name, $"of shape {shape}", "a tensor has fewer than 2^63 bits");
        }

        if ((Int128)elements * bits != (Int128)(entry.End - entry.Begin) * 8)
        {
            throw Fault(
                entry.Name,
                $"of shape {shape} in {entry.End - entry.Begin} bytes",
                $"data_offsets {offsets} must span exactly its {elements} elements of {bits} bits");
        }

        Names.Add(entry.Name);
        Extents.Add((entry.Begin, entry.End, entry.Name.At));
        if (wanted)
        {
            Found = entry;
        }
    }

    private (string Name, int Bits) ReadType()
    {
        Require(JsonTokenType.String, "'dtype'", "a string");
        foreach ((string Name, int Bits) known in SafetensorsElementTypes.All)
        {
            if (_reader.ValueTextEquals(known.Name))
            {
                return known;
            }
        }

        throw Fault(
            "'dtype'",
            TensorFileFaults.Quote(_reader.ValueSpan),
            $"the format knows no such type; the types read are {SafetensorsElementTypes.Readable}");
    }

    private long[] ReadNumbers(string field, int most)
    {
        var numbers = new List<long>();
        Require(JsonTokenType.StartArray, field, "a list");
        while (Next() != JsonTokenType.EndArray)
        {
            if (numbers.Count == most)
            {
                throw Fault(field, $"a list of more than {most} numbers", $"at most {most} are read");
            }

            if (_reader.TokenType != JsonTokenType.Number || !_reader.TryGetInt64(out long number) || number < 0)
            {
                throw Fault(field, TensorFileFaults.Quote(_reader.ValueSpan), "its numbers are whole, 0 or more and below 2^63");
            }

            numbers.Add(number);
        }

        return [.. numbers];
    }

    private JsonTokenType Next()
    {
        try
        {
            return _reader.Read() ? _reader.TokenType : JsonTokenType.None;
        }
        catch (JsonException error)
        {
            string reason = error.Message.Split(" LineNumber:")[0].TrimEnd('.');
            throw _faults.Malformed(_fileOffset + _reader.BytesConsumed, "the header", $"not JSON ({reason})", "a header is one JSON object");
        }
    }

    private void Require(JsonTokenType type, string field, string rule)
    {
        _ = Next();
        RequireToken(type, field, rule);
    }

    private readonly void RequireToken(JsonTokenType type, string field, string rule)
    {
        if (_reader.TokenType != type)
        {
            throw Fault(field, $"{_reader.TokenType} {TensorFileFaults.Quote(_reader.ValueSpan)}", $"it is {rule}");
        }
    }

    private readonly void RequireOnce(object? earlier, string field)
    {
        if (earlier is not null)
        {
            throw Fault("the header", $"with {field} for the second time", "every field stands once");
        }
    }

    private readonly FaultException Fault(string field, string value, string rule) =>
        _faults.Malformed(_fileOffset + _reader.TokenStartIndex, field, value, rule);

    private readonly FaultException Fault(JsonName name, string value, string rule) =>
        _faults.Malformed(_fileOffset + name.At, $"the tensor {TensorFileFaults.Quote(name.In(_json))}", value, rule);
}
