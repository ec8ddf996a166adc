using System;
using System.Globalization;
using System.IO;
using System.Text;
using TreeAttention.Runtime.Files;

namespace TreeAttention;

/// <summary>A tensor in a file, mapped read-only: opening reads the header alone, the system reads what is used later.</summary>
/// <remarks>
/// Reads <c>.npy</c> (versions 1.0 to 3.0, both storage orders; f2, f4, f8, b1, i4, i8, little-endian) and <c>.safetensors</c>
/// (F64, F32, F16, BF16, F8_E4M3, BOOL, I32, I64). Files are not trusted: every offset and length is held against the file's
/// own length before it is used, and no header makes the reader allocate more than the file holds.
/// </remarks>
public sealed class TensorFile : IDisposable
{
    private readonly MappedFile _file;
    private readonly string _path;

    private TensorFile(MappedFile file, string path, TensorView view)
    {
        (_file, _path) = (file, path);
        View = view;
    }

    /// <summary>The tensor. Valid until this object is disposed of.</summary>
    public TensorView View { get; }

    /// <summary>Opens <c>PATH.npy</c>, <c>PATH.safetensors:TENSOR</c>, or <c>PATH.safetensors</c> that holds one tensor.</summary>
    /// <param name="spec">What the user wrote; paths and tensor names may hold colons.</param>
    /// <param name="name">What messages call the tensor, and its name as a view.</param>
    /// <exception cref="FaultException">
    /// The file breaks its format, is truncated, or holds no such tensor or type (65); it is missing or cannot be read (66).
    /// </exception>
    public static TensorFile Open(string spec, string name)
    {
        ArgumentNullException.ThrowIfNull(spec);
        var parsed = TensorFileSpec.Parse(spec, name);
        var faults = new TensorFileFaults(name, parsed.Path);
        var file = new MappedFile(parsed.Path, faults);
        try
        {
            TensorRecord record = parsed.Format == TensorFormat.Npy
                ? NpyHeader.Read(file, faults)
                : SafetensorsHeader.Read(file, parsed.Tensor, faults);
            return new TensorFile(file, parsed.Path, ViewOf(file, record, name));
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <summary>The tensor and its file: <c>key f16 [1, 16, 4, 64] of k.npy</c>.</summary>
    public override string ToString() => $"{View} of {_path}";

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    /// <summary>One of the tensors of a safetensors file that is open already. Valid as long as the file is.</summary>
    /// <exception cref="FaultException">As of <see cref="Open"/>.</exception>
    internal static TensorView ViewOf(MappedFile file, string path, string tensor) =>
        ViewOf(file, SafetensorsHeader.Read(file, tensor, new TensorFileFaults(tensor, path)), tensor);

    private static TensorView ViewOf(MappedFile file, TensorRecord record, string name) =>
        new(name, file.AddressOf(record.Offset), record.Type, record.Shape, record.Strides()) { Source = file };
}

/// <summary>What a user writes to name a tensor: <c>PATH.npy</c>, <c>PATH.safetensors</c> or <c>PATH.safetensors:TENSOR</c>.</summary>
/// <param name="Path">The file.</param>
/// <param name="Format">Its format, by its name.</param>
/// <param name="Tensor">The tensor inside; null where none is named.</param>
internal readonly record struct TensorFileSpec(string Path, TensorFormat Format, string? Tensor)
{
    private const string NpyEnding = ".npy";
    private const string SafetensorsEnding = ".safetensors";

    /// <summary>Takes the text apart. Paths and tensor names may hold colons: the split whose file exists is meant.</summary>
    /// <exception cref="FaultException">The text names no tensor file (65), or one that does not exist (66).</exception>
    public static TensorFileSpec Parse(string text, string name)
    {
        TensorFileSpec? whole = Whole(text);
        if (whole is not null && File.Exists(text))
        {
            return whole.Value;
        }

        TensorFileSpec? split = null;
        const string separator = SafetensorsEnding + ":";
        for (int at = text.IndexOf(separator, StringComparison.Ordinal);
            at >= 0;
            at = text.IndexOf(separator, at + separator.Length, StringComparison.Ordinal))
        {
            int colon = at + SafetensorsEnding.Length;
            split = new TensorFileSpec(text[..colon], TensorFormat.Safetensors, text[(colon + 1)..]);
            if (File.Exists(split.Value.Path))
            {
                return split.Value;
            }
        }

        return split ?? whole ?? throw NoTensorFile(text, name);
    }

    /// <summary>The file in what a user wrote; null where it names no tensor file, or none that there is.</summary>
    public static string? PathIn(string text)
    {
        try
        {
            return Parse(text, "").Path;
        }
        catch (FaultException)
        {
            return null;
        }
    }

    private static TensorFileSpec? Whole(string text) =>
        text.EndsWith(NpyEnding, StringComparison.Ordinal) ? new TensorFileSpec(text, TensorFormat.Npy, null)
        : text.EndsWith(SafetensorsEnding, StringComparison.Ordinal) ? new TensorFileSpec(text, TensorFormat.Safetensors, null)
        : null;

    private static FaultException NoTensorFile(string text, string name)
    {
        var faults = new TensorFileFaults(name, text);
        return FileKinds.Of(text) == FileKind.Unknown
            ? faults.Missing()
            : text.EndsWith(".npz", StringComparison.Ordinal)
                ? faults.Unnamed("it is an archive of .npy files", "Unpack it with unzip and name one of its .npy files")
                : faults.Unnamed("its name ends in none of the known endings", "Give FILE.npy or FILE.safetensors:TENSOR");
    }
}

/// <summary>The tensor file formats that are read.</summary>
internal enum TensorFormat
{
    /// <summary>numpy's .npy, versions 1.0, 2.0 and 3.0: one tensor.</summary>
    Npy,

    /// <summary>Hugging Face's .safetensors: named tensors.</summary>
    Safetensors,
}

/// <summary>Where a tensor lies in its file and what it is; checked against the file's length.</summary>
/// <param name="Type">Element type.</param>
/// <param name="Shape">Length of each axis.</param>
/// <param name="ColumnMajor">True when the first axis runs fastest (Fortran order).</param>
/// <param name="Offset">First byte in the file.</param>
internal sealed record TensorRecord(ElementType Type, long[] Shape, bool ColumnMajor, long Offset)
{
    /// <summary>Most axes of a tensor; numpy's own limit.</summary>
    public const int MostAxes = 64;

    /// <summary>Strides in elements.</summary>
    public long[] Strides()
    {
        long[] strides = new long[Shape.Length];
        long stride = 1;
        for (int i = 0; i < strides.Length; i++)
        {
            int axis = ColumnMajor ? i : strides.Length - 1 - i;
            strides[axis] = stride;
            stride *= Math.Max(1, Shape[axis]);
        }

        return strides;
    }

    /// <summary>Elements of a tensor of this shape.</summary>
    /// <returns>
    /// Null when elements or bits pass 2^63, also where an axis of length 0 would hide it: strides must not overflow either.
    /// </returns>
    public static long? Elements(ReadOnlySpan<long> shape, int bitsOfOne)
    {
        Int128 extent = bitsOfOne;
        bool empty = false;
        foreach (long length in shape)
        {
            empty |= length == 0;
            extent *= Math.Max(1, length);
            if (extent > long.MaxValue)
            {
                return null;
            }
        }

        return empty ? 0 : (long)(extent / bitsOfOne);
    }
}

/// <summary>Words the faults of one tensor file: which input, which file, at which byte, what is there, the rule, the way out.</summary>
/// <param name="name">What the user calls the input: <c>query</c>, <c>alibi slopes</c>.</param>
/// <param name="path">The file.</param>
internal sealed class TensorFileFaults(string name, string path)
{
    private const int LongestQuote = 60;

    /// <summary>The way out where only another writer of the file can help.</summary>
    public const string WriteAgain = "Copy the file again, or write it again with its own library";

    /// <summary>A line for a shell that writes a big-endian .npy file again, little-endian.</summary>
    public string ByteOrderCommand =>
        "python3 -c \"import numpy, sys; a = numpy.load(sys.argv[1]); numpy.save(sys.argv[1], a.astype(a.dtype.newbyteorder('<')))\" "
        + $"'{path.Replace("'", "'\\''", StringComparison.Ordinal)}'";

    /// <summary>A field that breaks a rule of the format (65).</summary>
    public FaultException Malformed(long offset, string field, string value, string rule, string wayOut = WriteAgain) =>
        new(FaultCode.BadInput, $"{name} {path}: {field} at byte {offset} is {value}; {rule}. {wayOut}.");

    /// <summary>The file is shorter than it says it is (65).</summary>
    public FaultException Truncated(long offset, string field, string declared, long actualBytes) =>
        new(
            FaultCode.BadInput,
            $"{name} {path} is truncated: {field} at byte {offset} declares {declared} bytes, the file has {actualBytes}. {WriteAgain}.");

    /// <summary>Bytes that were there when the file was opened are gone (65).</summary>
    public FaultException Shortened(long offset, long declared, long actualBytes) =>
        new(
            FaultCode.BadInput,
            $"{name} {path} became shorter while it was read: byte {offset} of {declared} is gone, the file has {actualBytes}. "
            + "Read it when whoever writes it is done; a program that replaces a file by renaming does no harm.");

    /// <summary>The disk or the network failed (74).</summary>
    public FaultException Failed(string reason, Exception inner) =>
        new(FaultCode.InputOutput, $"{name} {path} could not be read to its end: {reason.TrimEnd('.')}. Check its disk or network file system.", inner);

    /// <summary>The file itself is not what was asked for (65).</summary>
    public FaultException Unnamed(string what, string wayOut) =>
        new(FaultCode.BadInput, $"{name} {path} cannot be read as a tensor: {what}. {wayOut}.");

    /// <summary>There is no such file (66).</summary>
    public FaultException Missing() =>
        new(FaultCode.MissingInput, $"{name} {path} does not exist. Check the path, and that this node sees the same file system.");

    /// <summary>There is a file, but it cannot be read (66).</summary>
    public FaultException Unreadable(string reason, Exception? inner = null) =>
        new(FaultCode.MissingInput, $"{name} {path} cannot be read: {reason}. Give a regular file that this user may read.", inner);

    /// <summary>Bytes of a file as text that is safe to print: quoted, shortened, without control characters.</summary>
    public static string Quote(ReadOnlySpan<byte> bytes) =>
        Quote(Encoding.Latin1.GetString(bytes[..Math.Min(bytes.Length, LongestQuote + 1)]));

    /// <summary>Text of a file as text that is safe to print: quoted, shortened, without control characters.</summary>
    public static string Quote(string text)
    {
        var quoted = new StringBuilder("'");
        foreach (char letter in text.AsSpan(0, Math.Min(text.Length, LongestQuote)))
        {
            _ = letter is >= ' ' and < '\x7f'
                ? quoted.Append(letter)
                : quoted.Append(CultureInfo.InvariantCulture, $"\\u{(int)letter:x4}");
        }

        return quoted.Append(text.Length > LongestQuote ? "...'" : "'").ToString();
    }
}
