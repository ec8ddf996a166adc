using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>The header of an .npy file: magic, version, length, and a Python dictionary of type, order and shape.</summary>
internal static class NpyHeader
{
    /// <summary>Longest dictionary that is read. Only types of many fields, which are refused anyway, need more.</summary>
    private const int LongestDictionary = 65_536;

    private const int VersionAt = 6;
    private const int LengthAt = 8;

    /// <summary>The first bytes of every .npy file.</summary>
    public static ReadOnlySpan<byte> Magic => [0x93, (byte)'N', (byte)'U', (byte)'M', (byte)'P', (byte)'Y'];

    /// <summary>Reads and checks the header; the tensor then lies inside the file and fills it to the end.</summary>
    /// <exception cref="FaultException">The header breaks a rule, or the file is truncated (65).</exception>
    public static TensorRecord Read(MappedFile file, TensorFileFaults faults)
    {
        int dictionaryAt = ReadVersion(file, faults);
        long dictionaryLength = dictionaryAt == LengthAt + sizeof(ushort)
            ? BinaryPrimitives.ReadUInt16LittleEndian(file.First(dictionaryAt)[LengthAt..])
            : BinaryPrimitives.ReadUInt32LittleEndian(file.First(dictionaryAt)[LengthAt..]);
        long dataAt = dictionaryAt + dictionaryLength;
        if (dataAt > file.Length)
        {
            throw faults.Truncated(LengthAt, "the header length", $"{dataAt}", file.Length);
        }

        if (dictionaryLength > LongestDictionary)
        {
            throw faults.Malformed(
                LengthAt, "the header length", $"{dictionaryLength}", $"headers of at most {LongestDictionary} bytes are read");
        }

        var dictionary = new NpyDictionary(file.First((int)dataAt)[dictionaryAt..], dictionaryAt, faults);
        dictionary.Read();
        RequireLength(file.Length, dataAt, dictionary, faults);
        return new TensorRecord(dictionary.Type, dictionary.Shape, dictionary.ColumnMajor, dataAt);
    }

    private static int ReadVersion(MappedFile file, TensorFileFaults faults)
    {
        ReadOnlySpan<byte> magic = file.First(Magic.Length);
        if (!Magic.StartsWith(magic))
        {
            throw faults.Malformed(
                0,
                "the magic",
                TensorFileFaults.Quote(magic),
                "an .npy file begins with \\x93NUMPY",
                magic.StartsWith("PK"u8) ? "Unpack the .npz archive with unzip" : "Write the file with numpy.save");
        }

        ReadOnlySpan<byte> start = file.First(LengthAt + sizeof(uint));
        if (start.Length <= LengthAt + 1)
        {
            throw faults.Truncated(0, "the format's fixed start", $"{LengthAt + sizeof(ushort)}", file.Length);
        }

        (byte major, byte minor) = (start[VersionAt], start[VersionAt + 1]);
        if (major is < 1 or > 3 || minor != 0)
        {
            throw faults.Malformed(VersionAt, "the version", $"{major}.{minor}", "versions 1.0, 2.0 and 3.0 are known");
        }

        int dictionaryAt = LengthAt + (major == 1 ? sizeof(ushort) : sizeof(uint));
        return start.Length < dictionaryAt
            ? throw faults.Truncated(0, "the format's fixed start", $"{dictionaryAt}", file.Length)
            : dictionaryAt;
    }

    private static void RequireLength(long fileLength, long dataAt, in NpyDictionary dictionary, TensorFileFaults faults)
    {
        int size = dictionary.Type.SizeInBytes();
        string shape = $"({string.Join(", ", dictionary.Shape)})";
        if (TensorRecord.Elements(dictionary.Shape, size * 8) is not { } elements)
        {
            throw faults.Malformed(dictionary.ShapeAt, "'shape'", shape, "a tensor has fewer than 2^63 bits");
        }

        long declared = dataAt + (elements * size);
        if (declared > fileLength)
        {
            throw faults.Truncated(dictionary.ShapeAt, $"'shape' {shape} of {dictionary.Type.ShortName()}", $"{declared}", fileLength);
        }

        if (declared < fileLength)
        {
            throw faults.Malformed(
                dictionary.ShapeAt,
                "'shape'",
                $"{shape} of {dictionary.Type.ShortName()}, which ends at byte {declared} of {fileLength}",
                "a file holds one tensor and nothing behind it",
                "Write one array a file with numpy.save");
        }
    }
}

/// <summary>Parses the dictionary of an .npy header: exactly descr, fortran_order and shape, in any order, as Python writes them.</summary>
internal ref struct NpyDictionary
{
    private readonly ReadOnlySpan<byte> _text;
    private readonly int _fileOffset;
    private readonly TensorFileFaults _faults;
    private int _at;

    /// <summary>Takes the text of the dictionary, which begins at byte <paramref name="fileOffset"/> of its file.</summary>
    public NpyDictionary(ReadOnlySpan<byte> text, int fileOffset, TensorFileFaults faults)
    {
        _text = text;
        _fileOffset = fileOffset;
        _faults = faults;
    }

    /// <summary>Element type.</summary>
    public ElementType Type { get; private set; }

    /// <summary>True for Fortran order.</summary>
    public bool ColumnMajor { get; private set; }

    /// <summary>Length of each axis.</summary>
    public long[] Shape { get; private set; } = [];

    /// <summary>Where the shape stands in the file.</summary>
    public long ShapeAt { get; private set; }

    /// <summary>Parses the whole text.</summary>
    /// <exception cref="FaultException">The text breaks a rule (65).</exception>
    public void Read()
    {
        var seen = new HashSet<string>();
        Expect((byte)'{', "the dictionary");
        while (!Accept((byte)'}'))
        {
            int keyAt = SkipBlanks();
            ReadOnlySpan<byte> key = ReadString("a key");
            Expect((byte)':', "the dictionary");
            string name = ReadValue(key, keyAt);
            if (!seen.Add(name))
            {
                throw Fault(keyAt, "a key", $"'{name}' for the second time", "every key stands once");
            }

            if (!Accept((byte)','))
            {
                Expect((byte)'}', "the dictionary");
                break;
            }
        }

        RequireEnd();
        foreach (string name in (ReadOnlySpan<string>)["descr", "fortran_order", "shape"])
        {
            if (!seen.Contains(name))
            {
                throw Fault(0, "the dictionary", $"without '{name}'", "it holds 'descr', 'fortran_order' and 'shape'");
            }
        }
    }

    private string ReadValue(ReadOnlySpan<byte> key, int keyAt)
    {
        int valueAt = SkipBlanks();
        if (key.SequenceEqual("descr"u8))
        {
            Type = ReadType(valueAt);
            return "descr";
        }

        if (key.SequenceEqual("fortran_order"u8))
        {
            ColumnMajor = ReadTruth(valueAt);
            return "fortran_order";
        }

        if (key.SequenceEqual("shape"u8))
        {
            ShapeAt = _fileOffset + valueAt;
            Shape = ReadShape();
            return "shape";
        }

        throw Fault(keyAt, "a key", TensorFileFaults.Quote(key), "the keys are 'descr', 'fortran_order' and 'shape'");
    }

    private ElementType ReadType(int at)
    {
        if (Peek() is (byte)'[' or (byte)'(')
        {
            throw Fault(
                at,
                "'descr'",
                "a structured dtype",
                "a tensor has elements of one plain type",
                "Save one field of the array with numpy.save");
        }

        ReadOnlySpan<byte> descr = ReadString("'descr'");
        return NpyElementTypes.Parse(descr, _fileOffset + at, _faults);
    }

    private bool ReadTruth(int at)
    {
        ReadOnlySpan<byte> rest = _text[_at..];
        bool value = rest.StartsWith("True"u8);
        if (!value && !rest.StartsWith("False"u8))
        {
            throw Fault(at, "'fortran_order'", TensorFileFaults.Quote(rest[..Math.Min(5, rest.Length)]), "it is True or False");
        }

        _at += value ? 4 : 5;
        return value;
    }

    private long[] ReadShape()
    {
        var lengths = new List<long>();
        Expect((byte)'(', "'shape'");
        while (!Accept((byte)')'))
        {
            if (lengths.Count == TensorRecord.MostAxes)
            {
                throw Fault(_at, "'shape'", $"of more than {TensorRecord.MostAxes} axes", $"at most {TensorRecord.MostAxes} are read");
            }

            lengths.Add(ReadLength());
            bool comma = Accept((byte)',');
            if (!comma && lengths.Count == 1)
            {
                throw Fault(_at, "'shape'", "a number in brackets", "a tuple of one length has a comma behind it");
            }

            if (!comma)
            {
                Expect((byte)')', "'shape'");
                break;
            }
        }

        return [.. lengths];
    }

    private long ReadLength()
    {
        int start = SkipBlanks();
        long value = 0;
        while (Peek() is >= (byte)'0' and <= (byte)'9')
        {
            int digit = _text[_at++] - '0';
            if (value > (long.MaxValue - digit) / 10)
            {
                throw Fault(start, "'shape'", $"{TensorFileFaults.Quote(_text[start..])}", "a length is below 2^63");
            }

            value = (value * 10) + digit;
        }

        if (_at == start)
        {
            throw Fault(
                start,
                "'shape'",
                TensorFileFaults.Quote(_text.Slice(start, Math.Min(8, _text.Length - start))),
                "lengths are whole numbers, 0 or more");
        }

        if (Peek() == (byte)'L')
        {
            _at++; // Python 2 wrote long integers this way.
        }

        return value;
    }

    private ReadOnlySpan<byte> ReadString(string field)
    {
        int start = SkipBlanks();
        byte quote = Peek();
        if (quote is not ((byte)'\'' or (byte)'"'))
        {
            throw Fault(start, field, Seen(), "it is a quoted string");
        }

        ReadOnlySpan<byte> rest = _text[(start + 1)..];
        int length = rest.IndexOf(quote);
        if (length < 0 || rest[..length].Contains((byte)'\\'))
        {
            throw Fault(
                start, field, TensorFileFaults.Quote(rest), length < 0 ? "its closing quote is missing" : "it holds no backslash");
        }

        _at = start + length + 2;
        return rest[..length];
    }

    private void RequireEnd()
    {
        int end = SkipBlanks();
        if (end < _text.Length)
        {
            throw Fault(end, "the header", Seen(), "only blanks follow the dictionary");
        }
    }

    private void Expect(byte letter, string field)
    {
        if (!Accept(letter))
        {
            throw Fault(_at, field, Seen(), $"'{(char)letter}' is expected here");
        }
    }

    private bool Accept(byte letter)
    {
        if (SkipBlanks() < _text.Length && _text[_at] == letter)
        {
            _at++;
            return true;
        }

        return false;
    }

    private readonly byte Peek() => _at < _text.Length ? _text[_at] : (byte)0;

    private readonly string Seen() => _at < _text.Length ? TensorFileFaults.Quote(_text.Slice(_at, 1)) : "at its end";

    private int SkipBlanks()
    {
        while (Peek() is (byte)' ' or (byte)'\n' or (byte)'\r' or (byte)'\t')
        {
            _at++;
        }

        return _at;
    }

    private readonly FaultException Fault(int at, string field, string value, string rule, string? wayOut = null) =>
        _faults.Malformed(_fileOffset + at, field, value, rule, wayOut ?? TensorFileFaults.WriteAgain);
}

/// <summary>The element types of .npy files: numpy's byte order, kind and size, as in <c>&lt;f4</c>.</summary>
internal static class NpyElementTypes
{
    private static readonly string _readable = StorageType.List(
        StorageType.All.Where(type => type.NpyName is not null)
            .OrderByDescending(type => type.IsFloatingPoint).ThenBy(type => type.BitsPerElement).Select(type => type.NpyName!),
        "and");

    /// <summary>The element type of a dtype string.</summary>
    /// <exception cref="FaultException">It is not one of those that are read (65); the message says what to do instead.</exception>
    public static ElementType Parse(ReadOnlySpan<byte> descr, long offset, TensorFileFaults faults)
    {
        ReadOnlySpan<byte> kindAndSize = descr.TrimStart("<>=|"u8);
        bool bigEndian = descr.StartsWith(">"u8);
        if (descr.Length - kindAndSize.Length <= 1 && Known(kindAndSize) is { } type && (!bigEndian || type.SizeInBytes() == 1))
        {
            return type;
        }

        (string rule, string wayOut) =
            kindAndSize.StartsWith("O"u8)
                ? ("an object dtype holds pickled Python objects, which are never unpickled", "Save it with .astype('<f4')")
            : kindAndSize.SequenceEqual("V2"u8)
                ? ("raw bytes have no type: .npy cannot say bfloat16", "Save bfloat16 tensors as .safetensors")
            : kindAndSize.SequenceEqual("V1"u8)
                ? ("raw bytes have no type: .npy cannot say float8", "Save float8 tensors as .safetensors")
            : bigEndian && Known(kindAndSize) is not null
                ? ("it is big-endian, and only little-endian files are read", $"Convert it with: {faults.ByteOrderCommand}")
                : ($"the types read from .npy are {_readable}, little-endian",
                    kindAndSize.StartsWith("i"u8) || kindAndSize.StartsWith("u"u8) ? "Save it with .astype('<i8')" : "Save it with .astype('<f4')");
        throw faults.Malformed(offset, "'descr'", TensorFileFaults.Quote(descr), rule, wayOut);
    }

    private static ElementType? Known(ReadOnlySpan<byte> kindAndSize)
    {
        foreach (StorageType type in StorageType.All)
        {
            if (type.NpyName is { } name && Ascii.Equals(kindAndSize, name))
            {
                return type.Type;
            }
        }

        return null;
    }
}
