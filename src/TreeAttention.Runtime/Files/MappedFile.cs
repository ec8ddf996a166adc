using System;
using System.IO;
using System.IO.MemoryMappedFiles;
using Microsoft.Win32.SafeHandles;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Runtime.Files;

/// <summary>A whole file mapped read-only into memory, and read beside it: the system reads what is used and nothing else.</summary>
/// <remarks>
/// A file that another program shortens would end this process at the next touch of the lost part of the mapping (SIGBUS). So all
/// reading here goes by <see cref="Read"/>, which tells it as a fault; the mapping gives the bytes their addresses, and serves callers of
/// the library who look at <see cref="TensorView.Address"/> themselves.
/// </remarks>
internal sealed unsafe class MappedFile : ITensorSource, IDisposable
{
    private readonly TensorFileFaults _faults;
    private readonly SafeFileHandle? _handle;
    private readonly MemoryMappedFile? _mapping;
    private readonly MemoryMappedViewAccessor? _view;
    private readonly byte* _start;

    /// <summary>Maps the file.</summary>
    /// <exception cref="FaultException">It is missing, unreadable, or not a regular file (66).</exception>
    public MappedFile(string path, TensorFileFaults faults)
    {
        _faults = faults;
        FileKind kind = FileKinds.Of(path);
        if (kind is not (FileKind.Regular or FileKind.Unknown))
        {
            throw faults.Unreadable(kind == FileKind.Directory ? "it is a directory" : "it is a device or a pipe, which cannot be mapped");
        }

        try
        {
            // No FileShare.Read: its advisory lock would fail on file systems without locks, and ranks only read.
            _handle = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            Length = RandomAccess.GetLength(_handle);
            if (Length > 0)
            {
                _mapping = MemoryMappedFile.CreateFromFile(
                    _handle, null, 0, MemoryMappedFileAccess.Read, HandleInheritability.None, leaveOpen: true);
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
            _handle?.Dispose();
            throw faults.Unreadable(error.Message.TrimEnd('.'), error);
        }
    }

    /// <summary>Bytes of the file when it was opened.</summary>
    public long Length { get; }

    /// <summary>The address of a byte; that of the byte after the last is allowed, for tensors of no elements.</summary>
    public nint AddressOf(long offset)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(offset);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(offset, Length);
        return (nint)(_start + offset);
    }

    /// <summary>The first bytes of the file: <paramref name="most"/>, or as many as there are.</summary>
    /// <exception cref="FaultException">The file became shorter (65), or reading failed (74).</exception>
    public ReadOnlySpan<byte> First(int most)
    {
        byte[] bytes = new byte[Math.Min(most, Length)];
        Read((nint)_start, bytes);
        return bytes;
    }

    /// <summary>Copies the part of <paramref name="into"/> that lies in the file; addresses before its first byte and past its last have none.</summary>
    /// <exception cref="FaultException">The file became shorter (65), or reading failed (74).</exception>
    public void Read(nint address, Span<byte> into)
    {
        long offset = address - (nint)_start;
        int before = (int)Math.Max(0, -offset);
        int end = (int)Math.Min(into.Length, Length - offset);
        for (int done = before; done < end;)
        {
            int count = ReadOnce(offset + done, into[done..end]);
            done += count;
            if (count == 0)
            {
                throw _faults.Shortened(offset + done, Length, RandomAccess.GetLength(_handle!));
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_view is not null)
        {
            _view.SafeMemoryMappedViewHandle.ReleasePointer();
            _view.Dispose();
        }

        _mapping?.Dispose();
        _handle?.Dispose();
    }

    private int ReadOnce(long offset, Span<byte> into)
    {
        try
        {
            return RandomAccess.Read(_handle!, into, offset);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw _faults.Failed(error.Message, error);
        }
    }
}
