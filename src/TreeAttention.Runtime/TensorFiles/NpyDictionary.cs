using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

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
