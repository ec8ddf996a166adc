using System;
using System.IO;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

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
