using System;
using TreeAttention.Interop;

namespace TreeAttention.Runtime;

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

/// <summary>Asks the system for the kind of a file without opening it.</summary>
internal static class FileKinds
{
    /// <summary>The kind of the file at <paramref name="path"/>.</summary>
    public static unsafe FileKind Of(string path)
    {
        if (path.Length == 0 || path.Contains('\0', StringComparison.Ordinal))
        {
            return FileKind.Unknown;
        }

        FileStatus.Fields fields;
        return FileStatus.Query(FileStatus.WorkingDirectory, path, 0, FileStatus.TypeWanted, &fields) != 0
            ? FileKind.Unknown
            : (fields.Mode & FileStatus.TypeBits) switch
            {
                FileStatus.Regular => FileKind.Regular,
                FileStatus.Directory => FileKind.Directory,
                FileStatus.BlockDevice => FileKind.BlockDevice,
                _ => FileKind.Stream,
            };
    }
}
