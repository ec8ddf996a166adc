using System;
using System.Globalization;
using System.Text;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Words the faults of one tensor file: which input, which file, at which byte, what is there, the rule, the way out.</summary>
/// <param name="name">What the user calls the input: <c>query</c>, <c>--tail-bias</c>.</param>
/// <param name="path">The file.</param>
internal sealed class TensorFileFaults(string name, string path)
{
    private const int LongestQuote = 60;

    /// <summary>The way out where only another writer of the file can help.</summary>
    public const string WriteAgain = "Copy the file again, or write it again with its own library";

    /// <summary>A field that breaks a rule of the format (65).</summary>
    public FaultException Malformed(long offset, string field, string value, string rule, string wayOut = WriteAgain) =>
        new(FaultCode.BadInput, $"{name} {path}: {field} at byte {offset} is {value}; {rule}. {wayOut}.");

    /// <summary>The file is shorter than it says it is (65).</summary>
    public FaultException Truncated(long offset, string field, string declared, long actualBytes) =>
        new(
            FaultCode.BadInput,
            $"{name} {path} is truncated: {field} at byte {offset} declares {declared} bytes, the file has {actualBytes}. {WriteAgain}.");

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
