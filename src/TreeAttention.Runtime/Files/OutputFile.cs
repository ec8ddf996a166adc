using System;
using System.IO;
using Microsoft.Win32.SafeHandles;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Runtime.Files;

/// <summary>A file that appears whole or not at all: written under a temporary name beside its place, then renamed over it.</summary>
/// <remarks>Pipes, terminals and <c>/dev/null</c> have nothing to lose and cannot be renamed over; they are written directly.</remarks>
internal sealed class OutputFile : IDisposable
{
    private readonly string _path;
    private readonly string _target;
    private readonly bool _force;
    private readonly bool _isStream;
    private string? _temporary;
    private SafeFileHandle? _handle;
    private long _written;

    /// <summary>Finds out, before any work is done, whether the file will be writable. Leaves nothing behind.</summary>
    /// <exception cref="FaultException">It exists and <paramref name="force"/> is not given, or it cannot be created (73).</exception>
    public OutputFile(string path, bool force)
    {
        _path = path;
        _force = force;
        FileKind kind = FileKinds.Of(path);
        _isStream = kind == FileKind.Stream;
        try
        {
            // A link stays a link: what it leads to is replaced.
            bool isLink = !_isStream && new FileInfo(path).LinkTarget is not null;
            _target = _isStream ? path
                : isLink ? File.ResolveLinkTarget(Path.GetFullPath(path), returnFinalTarget: true)!.FullName
                : Path.GetFullPath(path);
        }
        catch (Exception error) when (IsFileFault(error))
        {
            throw CannotCreate(Reason(error), error);
        }

        Refuse(kind);
        if (!_isStream)
        {
            // The temporary file has a name of its own, so that it says nothing about the length of the real one.
            if (FileKinds.IsTooLong(_target))
            {
                throw CannotCreate("its name is longer than the file system can hold");
            }

            CreateTemporary(0).Dispose();
            RemoveTemporary();
        }
    }

    /// <summary>Opens the file for writing.</summary>
    /// <param name="bytes">Bytes that will be written; the disk must have room for all of them.</param>
    /// <exception cref="FaultException">It cannot be created any more (73), or the disk is full (74).</exception>
    public void Open(long bytes)
    {
        try
        {
            _handle = _isStream ? File.OpenHandle(_target, FileMode.Open, FileAccess.Write, FileShare.ReadWrite) : CreateTemporary(bytes);
        }
        catch (Exception error) when (IsFileFault(error))
        {
            throw CannotCreate(Reason(error), error);
        }
    }

    /// <summary>Writes the next bytes. After a failure the same bytes may be written again.</summary>
    /// <exception cref="FaultException">The disk is full, or writing failed (74).</exception>
    public void Append(ReadOnlySpan<byte> bytes)
    {
        try
        {
            RandomAccess.Write(_handle!, bytes, _written);
            _written += bytes.Length;
        }
        catch (Exception error) when (IsFileFault(error))
        {
            throw WritingFailed(Reason(error), error);
        }
    }

    /// <summary>Makes what was written durable and puts it in its place.</summary>
    /// <exception cref="FaultException">The disk is full (74), or a file has appeared there meanwhile (73).</exception>
    public void Commit()
    {
        if (_isStream)
        {
            Close();
            return;
        }

        try
        {
            RandomAccess.FlushToDisk(_handle!);
            Close();
            if (_force && File.Exists(_target) && !OperatingSystem.IsWindows())
            {
                File.SetUnixFileMode(_temporary!, File.GetUnixFileMode(_target));
            }

            UnfinishedFiles.End(_temporary!, () => File.Move(_temporary!, _target, _force));
            _temporary = null;
        }
        catch (IOException) when (!_force && File.Exists(_target))
        {
            throw Exists();
        }
        catch (Exception error) when (IsFileFault(error))
        {
            throw WritingFailed(Reason(error), error);
        }
    }

    /// <summary>Removes what was not committed.</summary>
    public void Dispose()
    {
        Close();
        RemoveTemporary();
    }

    private void Refuse(FileKind kind)
    {
        string? directory = _isStream ? null : Path.GetDirectoryName(_target);
        switch (kind)
        {
            case FileKind.Directory:
                throw CannotCreate("it is a directory");
            case FileKind.BlockDevice:
                throw CannotCreate("it is a disk");
            case FileKind.Regular when !_force:
                throw Exists();
            case FileKind.Unknown when directory is null || Path.GetFileName(_target).Length == 0:
                throw CannotCreate("it is a directory");
            case FileKind.Unknown when !Directory.Exists(directory):
                throw CannotCreate($"the directory {directory} does not exist");
        }
    }

    private SafeFileHandle CreateTemporary(long bytes)
    {
        string name = $".treeattn-{Environment.ProcessId}-{Guid.NewGuid():N}.part";
        string path = Path.Join(Path.GetDirectoryName(_target), name);
        try
        {
            SafeFileHandle handle = UnfinishedFiles.Begin(path, () => File.OpenHandle(
                path, FileMode.CreateNew, FileAccess.Write, FileShare.Read | FileShare.Delete, FileOptions.None, bytes));
            _temporary = path;
            return handle;
        }
        catch (IOException error) when (bytes > 0 && error is not (DirectoryNotFoundException or FileNotFoundException))
        {
            throw WritingFailed(
                $"no room could be reserved for its {bytes} bytes; the disk is full, or the file too large for it", error);
        }
        catch (Exception error) when (IsFileFault(error))
        {
            throw CannotCreate(Reason(error), error);
        }
    }

    private void Close()
    {
        _handle?.Dispose();
        _handle = null;
    }

    private void RemoveTemporary()
    {
        if (_temporary is not null)
        {
            try
            {
                UnfinishedFiles.End(_temporary, () => File.Delete(_temporary));
            }
            catch (Exception error) when (IsFileFault(error))
            {
                // Removing runs while another fault may be on its way to the user, which must not be hidden.
            }

            _temporary = null;
        }
    }

    private static bool IsFileFault(Exception error) =>
        error is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException;

    // The name of the temporary file says nothing to the user.
    private static string Reason(Exception error) => error switch
    {
        UnauthorizedAccessException => "this user may not write there",
        DirectoryNotFoundException => "its directory does not exist",
        _ => error.Message.Split(" : ")[0].TrimEnd('.'),
    };

    private FaultException CannotCreate(string reason, Exception? inner = null) =>
        new(FaultCode.CannotCreate, $"{_path} cannot be created: {reason}. Choose another output file.", inner);

    private FaultException Exists() =>
        new(FaultCode.CannotCreate, $"{_path} exists already and is left as it is. Choose another output file, or give {Setting.Force}.");

    private FaultException WritingFailed(string reason, Exception error) => new(
        FaultCode.InputOutput,
        $"Writing {_path} failed after {_written} bytes: {reason}. "
            + (_isStream ? "" : "Nothing half-written is left, and an earlier file is as it was. ")
            + "Free some space or choose another output file.",
        error);
}
