using System;
using System.IO;
using System.Runtime.InteropServices;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Runtime.Files;

/// <summary>What a path leads to, through symbolic links.</summary>
internal enum FileKind
{
    /// <summary>Nothing, or nothing that may be looked at: opening it tells why.</summary>
    Unknown,

    /// <summary>A file with contents and a length.</summary>
    Regular,

    /// <summary>A directory.</summary>
    Directory,

    /// <summary>A disk, whose contents a write would destroy.</summary>
    BlockDevice,

    /// <summary>A pipe, a socket, a terminal, <c>/dev/null</c>: bytes go in or come out, but none are kept.</summary>
    Stream,
}

/// <summary>Asks the system what a path leads to, without opening it: opening a pipe would wait for its other end.</summary>
internal static class FileKinds
{
    /// <summary>The kind of the file at <paramref name="path"/>.</summary>
    public static FileKind Of(string path) => !TryQuery(path, FileStatus.TypeWanted, out FileStatus.Fields fields)
        ? FileKind.Unknown
        : (fields.Mode & FileStatus.TypeBits) switch
        {
            FileStatus.Regular => FileKind.Regular,
            FileStatus.Directory => FileKind.Directory,
            FileStatus.BlockDevice => FileKind.BlockDevice,
            _ => FileKind.Stream,
        };

    /// <summary>The path is longer than the file system can name, so that nothing can be created there.</summary>
    public static bool IsTooLong(string path) =>
        !TryQuery(path, FileStatus.TypeWanted, out _) && Marshal.GetLastPInvokeError() == LibC.NameTooLong;

    /// <summary>
    /// Both paths lead to one file, by whatever links and names: one number on one device. Of a file that does not exist yet the
    /// directory and the name decide.
    /// </summary>
    public static bool AreSame(string first, string second)
    {
        ((ulong, ulong)? one, (ulong, ulong)? other) = (NumberOf(first), NumberOf(second));
        if (one is not null || other is not null)
        {
            return one == other;
        }

        return Path.GetFileName(first) == Path.GetFileName(second)
            && NumberOf(DirectoryOf(first)) is { } directory && directory == NumberOf(DirectoryOf(second));
    }

    private static string DirectoryOf(string path) => Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/";

    private static (ulong Device, ulong Number)? NumberOf(string path) =>
        TryQuery(path, FileStatus.NumberWanted, out FileStatus.Fields fields) ? (fields.Device, fields.Number) : null;

    private static unsafe bool TryQuery(string path, uint wanted, out FileStatus.Fields fields)
    {
        fields = default;
        if (path.Length == 0 || path.Contains('\0', StringComparison.Ordinal))
        {
            return false;
        }

        fixed (FileStatus.Fields* filled = &fields)
        {
            return FileStatus.Query(FileStatus.WorkingDirectory, path, 0, wanted, filled) == 0;
        }
    }
}
