using System;
using System.IO;
using System.IO.MemoryMappedFiles;
using Microsoft.Win32.SafeHandles;

namespace TreeAttention.Runtime.Files;

/// <summary>A whole file mapped read-only into memory; the system reads the pages that are touched and no others.</summary>
/// <remarks>
/// A file that another program shortens while it is mapped ends this process at the next touch of the lost part (SIGBUS):
/// programs that replace a file by renaming, as <see cref="NpyWriter"/> does, are harmless.
/// </remarks>
internal sealed unsafe class MappedFile : IDisposable
{
    private readonly MemoryMappedFile? _mapping;
    private readonly MemoryMappedViewAccessor? _view;
    private readonly byte* _start;

    /// <summary>Maps the file.</summary>
    /// <exception cref="FaultException">It is missing, unreadable, or not a regular file (66).</exception>
    public MappedFile(string path, TensorFileFaults faults)
    {
        FileKind kind = FileKinds.Of(path);
        if (kind is not (FileKind.Regular or FileKind.Unknown))
        {
            throw faults.Unreadable(kind == FileKind.Directory ? "it is a directory" : "it is a device or a pipe, which cannot be mapped");
        }

        try
        {
            // No FileShare.Read: its advisory lock would fail on file systems without locks, and ranks only read.
            using SafeFileHandle handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            Length = RandomAccess.GetLength(handle);
            if (Length > 0)
            {
                _mapping = MemoryMappedFile.CreateFromFile(
                    handle, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: true);
                _view = _mapping.CreateViewAccessor(0, Length, MemoryMappedFileAccess.Read);
                _view.SafeMemoryMappedViewHandle.AcquirePointer(ref _start);
            }
        }
        catch (Exception error) when (error is FileNotFoundException or DirectoryNotFoundException)
        {
            throw faults.Missing();
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException or ArgumentException)
        {
            _view?.Dispose();
            _mapping?.Dispose();
            throw faults.Unreadable(error.Message.TrimEnd('.'), error);
        }
    }

    /// <summary>Bytes of the file.</summary>
    public long Length { get; }

    /// <summary>The address of a byte; that of the byte after the last is allowed, for tensors of no elements.</summary>
    public nint AddressOf(long offset)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Length);
        return (nint)(_start + offset);
    }

    /// <summary>The first bytes of the file: <paramref name="most"/>, or as many as there are.</summary>
    public ReadOnlySpan<byte> First(int most) => new(_start, (int)Math.Min(most, Length));

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_view is not null)
        {
            _view.SafeMemoryMappedViewHandle.ReleasePointer();
            _view.Dispose();
        }

        _mapping?.Dispose();
    }
}
