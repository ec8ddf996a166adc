using System;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>A tensor in a file, mapped read-only: opening reads the header alone, the system reads what is used later.</summary>
/// <remarks>
/// Reads <c>.npy</c> (versions 1.0 to 3.0, both storage orders; f2, f4, f8, b1, i4, i8, little-endian) and <c>.safetensors</c>
/// (F64, F32, F16, BF16, F8_E4M3, BOOL, I32, I64). Files are not trusted: every offset and length is held against the file's
/// own length before it is used, and no header makes the reader allocate more than the file holds.
/// </remarks>
public sealed class TensorFile : IDisposable
{
    private readonly MappedFile _file;

    private TensorFile(MappedFile file, TensorView view)
    {
        _file = file;
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
            var view = new TensorView(name, file.AddressOf(record.Offset), record.Type, record.Shape, record.Strides());
            return new TensorFile(file, view);
        }
        catch
        {
            file.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();
}
