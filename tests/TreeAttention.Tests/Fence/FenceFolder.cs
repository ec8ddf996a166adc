using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Security.Cryptography;
using System.Text;

namespace TreeAttention.Tests.Fence;

/// <summary>The folder that a case runs in: files made by recipes, and what is seen of the files that were written.</summary>
internal sealed class FenceFolder : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("treeattn-fence-").FullName;

    /// <summary>The folder's path, which <c>$DIR</c> stands for.</summary>
    public string FullName => _folder;

    /// <summary>Makes what a recipe says: <c>NAME KIND ...</c>.</summary>
    public void Make(string recipe)
    {
        string[] words = recipe.Split(' ', 3);
        string path = Path.Join(_folder, words[0]);
        string rest = words.Length > 2 ? words[2] : "";
        switch (words[1])
        {
            case "folder":
                Directory.CreateDirectory(path);
                break;
            case "link":
                File.CreateSymbolicLink(path, Path.Combine(_folder, rest));
                break;
            case "raw":
                File.WriteAllBytes(path, Bytes(rest));
                break;
            case "header":
                File.WriteAllBytes(path, Header(rest));
                break;
            case "safetensors":
                File.WriteAllBytes(path, Safetensors(rest));
                break;
            default:
                File.WriteAllBytes(path, Npy(words[1], rest));
                break;
        }
    }

    /// <summary>Size and digest of a file.</summary>
    public string Digest(string name)
    {
        string path = Path.Join(_folder, name);
        if (!File.Exists(path))
        {
            return $"{name}: absent";
        }

        byte[] bytes = File.ReadAllBytes(path);
        return $"{name}: {bytes.Length} bytes, sha256 {Convert.ToHexStringLower(SHA256.HashData(bytes))}";
    }

    /// <summary>The bytes of an .npy file up to its first element, as text with escapes.</summary>
    public string HeaderOf(string name)
    {
        byte[] bytes = File.ReadAllBytes(Path.Join(_folder, name));
        IEnumerable<string> header = bytes.Take(Array.IndexOf(bytes, (byte)'\n') + 1).Select(letter =>
            letter is >= (byte)' ' and < 0x7f ? $"{(char)letter}" : $"\\x{letter:x2}");
        return $"{name}: {string.Concat(header)}";
    }

    /// <summary>The names of all that lies in the folder, hidden files too.</summary>
    public string Names()
    {
        string[] names = [.. Directory.GetFileSystemEntries(_folder).Select(path => Path.GetFileName(path)).Order(StringComparer.Ordinal)];
        return names.Length == 0 ? "no files" : $"files: {string.Join(' ', names)}";
    }

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    // DESCR SHAPE normal SEED, or DESCR SHAPE of NUMBERS, or DESCR SHAPE all NUMBER; the shape is 2,3 or - for a scalar.
    private static byte[] Npy(string descr, string rest)
    {
        string[] words = rest.Split(' ');
        long[] shape = words[0] == "-" ? [] : [.. words[0].Split(',').Select(length => long.Parse(length, CultureInfo.InvariantCulture))];
        int count = (int)shape.Aggregate(1L, (a, b) => a * b);
        double[] numbers = words[1] switch
        {
            "normal" => Numbers(count, ulong.Parse(words[2], CultureInfo.InvariantCulture)),
            "all" => [.. Enumerable.Repeat(Number(words[2]), count)],
            _ => [.. words.Skip(2).Select(Number)],
        };
        string tuple = $"({string.Concat(shape.Select(length => string.Create(CultureInfo.InvariantCulture, $"{length}, ")))})";
        string text = $"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple}, }}\n";
        return [.. Start(1, Encoding.Latin1.GetBytes(text)), .. numbers.SelectMany(number => Element(descr, number))];
    }

    // VERSION ZEROS TEXT: a header of this text, and so many zero bytes behind it.
    private static byte[] Header(string rest)
    {
        string[] words = rest.Split(' ', 3);
        return [.. Start(byte.Parse(words[0], CultureInfo.InvariantCulture), Bytes(words[2])), .. Zeros(words[1])];
    }

    // ZEROS TEXT: a header of this text, and so many zero bytes behind it.
    private static byte[] Safetensors(string rest)
    {
        string[] words = rest.Split(' ', 2);
        byte[] text = Bytes(words[1]);
        byte[] length = new byte[sizeof(ulong)];
        BinaryPrimitives.WriteUInt64LittleEndian(length, (ulong)text.Length);
        return [.. length, .. text, .. Zeros(words[0])];
    }

    private static byte[] Start(byte version, byte[] text)
    {
        byte[] length = new byte[sizeof(uint)];
        BinaryPrimitives.WriteUInt32LittleEndian(length, (uint)text.Length);
        return [0x93, .. "NUMPY"u8, version, 0, .. length.AsSpan(0, version == 1 ? sizeof(ushort) : sizeof(uint)), .. text];
    }

    private static byte[] Zeros(string count) => new byte[int.Parse(count, CultureInfo.InvariantCulture)];

    // Text in which \xNN is a byte, and \xNN{COUNT} as many of it.
    private static byte[] Bytes(string text)
    {
        var bytes = new List<byte>();
        for (int at = 0; at < text.Length;)
        {
            if (text[at] != '\\' || at + 3 >= text.Length || text[at + 1] != 'x')
            {
                bytes.Add((byte)text[at++]);
                continue;
            }

            byte escaped = Convert.FromHexString(text.AsSpan(at + 2, 2))[0];
            at += 4;
            int end = at < text.Length && text[at] == '{' ? text.IndexOf('}', at) : -1;
            bool isRepeated = int.TryParse(end < 0 ? "1" : text[(at + 1)..end], NumberStyles.None, CultureInfo.InvariantCulture, out int count) && end >= 0;
            bytes.AddRange(Enumerable.Repeat(escaped, isRepeated ? count : 1));
            at = isRepeated ? end + 1 : at;
        }

        return [.. bytes];
    }

    private static double Number(string text) => double.Parse(text, CultureInfo.InvariantCulture);

    // Numbers in [-2, 2) of 20 bits each by splitmix64: the same for ever, and exact in float32.
    private static double[] Numbers(int count, ulong state)
    {
        double[] numbers = new double[count];
        for (int i = 0; i < count; i++)
        {
            ulong mixed = state += 0x9E3779B97F4A7C15;
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
            numbers[i] = (((mixed ^ (mixed >> 31)) >> 44) / 262144.0) - 2;
        }

        return numbers;
    }

    private static byte[] Element(string descr, double number) => descr switch
    {
        "<f2" => BitConverter.GetBytes((Half)number),
        "<f4" => BitConverter.GetBytes((float)number),
        "<f8" => BitConverter.GetBytes(number),
        "<i4" => BitConverter.GetBytes((int)number),
        "<i8" => BitConverter.GetBytes((long)number),
        "<i2" => BitConverter.GetBytes((short)number),
        "<u2" => BitConverter.GetBytes((ushort)number),
        "<u4" => BitConverter.GetBytes((uint)number),
        "|b1" or "|u1" => [(byte)number],
        _ => throw new ArgumentException($"No element is made of {descr}.", nameof(descr)),
    };
}
