using System.Runtime.InteropServices;

namespace TreeAttention.Interop;

/// <summary>statx of libc: the kind of a file before it is opened, since opening a pipe would wait for its other end.</summary>
internal static unsafe partial class FileStatus
{
    /// <summary>AT_FDCWD: relative paths begin at the working directory.</summary>
    public const int WorkingDirectory = -100;

    /// <summary>STATX_TYPE: fill in the type bits of the mode.</summary>
    public const uint TypeWanted = 1;

    /// <summary>S_IFMT: the type bits of a mode.</summary>
    public const int TypeBits = 0xF000;

    /// <summary>S_IFREG.</summary>
    public const int Regular = 0x8000;

    /// <summary>S_IFDIR.</summary>
    public const int Directory = 0x4000;

    /// <summary>S_IFBLK.</summary>
    public const int BlockDevice = 0x6000;

    /// <summary>Fills <paramref name="status"/> for what the path leads to, through symbolic links; 0, or -1 on failure.</summary>
    [LibraryImport("libc", EntryPoint = "statx", StringMarshalling = StringMarshalling.Utf8)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    public static partial int Query(int directory, string path, int flags, uint wanted, Fields* status);

    /// <summary>struct statx, whose layout is the same on every architecture; only what is used has a name.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 256)]
    public struct Fields
    {
        /// <summary>stx_mode.</summary>
        [FieldOffset(28)]
        public ushort Mode;
    }
}
