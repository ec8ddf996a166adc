using System;
using System.Buffers.Binary;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

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
