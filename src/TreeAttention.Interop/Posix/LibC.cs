using System.Runtime.InteropServices;

namespace TreeAttention.Interop.Posix;

/// <summary>The few calls of the C library that .NET does not offer (linux-x64).</summary>
internal static unsafe partial class LibC
{
    internal const int OpenReadWrite = 0x2;
    internal const int GetDescriptorFlags = 1;
    internal const int CloseOnExec = 1; // FD_CLOEXEC
    internal const int Interrupted = 4; // EINTR
    internal const int TryAgain = 11; // EAGAIN
    internal const int NameTooLong = 36; // ENAMETOOLONG
    internal const int OpenCreate = 0x40;
    internal const int OpenExclusive = 0x80;
    internal const int OpenCloseOnExec = 0x80000;
    internal const int OwnerReadWrite = 0x180; // 0600
    internal const int ProtectReadWrite = 0x3;
    internal const int MapShared = 0x1;
    internal const int MapPopulate = 0x8000;
    internal const int LoadLazily = 0x1;
    internal const int LoadNothingNew = 0x4;
    internal const int LoadGlobally = 0x100;

    private const string Library = "libc";

    /// <summary>Sets a variable where getenv sees it; Environment.SetEnvironmentVariable does not.</summary>
    [LibraryImport(Library, EntryPoint = "setenv", StringMarshalling = StringMarshalling.Utf8)]
    internal static partial int SetEnvironment(string name, string value, int overwrite);

    [LibraryImport(Library, EntryPoint = "dlopen", StringMarshalling = StringMarshalling.Utf8)]
    internal static partial nint OpenLibrary(string path, int flags);

    /// <summary>Ends the process at once, without exit handlers.</summary>
    [LibraryImport(Library, EntryPoint = "_exit")]
    internal static partial void ExitNow(int code);

    /// <summary>Fills up to 256 bytes with random ones; 0 when it did.</summary>
    [LibraryImport(Library, EntryPoint = "getentropy")]
    internal static partial int GetEntropy(byte* bytes, nuint count);

    [LibraryImport(Library, EntryPoint = "sched_yield")]
    internal static partial int YieldProcessor();

    [LibraryImport(Library, EntryPoint = "sched_getaffinity", SetLastError = true)]
    internal static partial int GetAffinity(int process, nuint maskBytes, ulong* mask);

    [LibraryImport(Library, EntryPoint = "open", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    internal static partial int OpenFile(string path, int flags, int mode);

    [LibraryImport(Library, EntryPoint = "close", SetLastError = true)]
    internal static partial int CloseFile(int descriptor);

    [LibraryImport(Library, EntryPoint = "write", SetLastError = true)]
    internal static partial nint Write(int descriptor, byte* bytes, nuint count);

    /// <summary>fcntl with F_GETFD: the flags of a descriptor, or -1 where none is open.</summary>
    [LibraryImport(Library, EntryPoint = "fcntl", SetLastError = true)]
    internal static partial int Control(int descriptor, int command);

    [LibraryImport(Library, EntryPoint = "isatty")]
    internal static partial int IsTerminal(int descriptor);

    [LibraryImport(Library, EntryPoint = "unlink", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    internal static partial int RemoveFile(string path);

    /// <summary>Reserves the bytes, so that a full memory file system is an error here and not a SIGBUS later. Returns the error.</summary>
    [LibraryImport(Library, EntryPoint = "posix_fallocate")]
    internal static partial int ReserveFile(int descriptor, long offset, long length);

    [LibraryImport(Library, EntryPoint = "mmap", SetLastError = true)]
    internal static partial nint Map(nint address, nuint length, int protection, int flags, int descriptor, long offset);

    [LibraryImport(Library, EntryPoint = "munmap", SetLastError = true)]
    internal static partial int Unmap(nint address, nuint length);
}

/// <summary>statx of libc: the kind of a file before it is opened, since opening a pipe would wait for its other end.</summary>
internal static unsafe partial class FileStatus
{
    /// <summary>AT_FDCWD: relative paths begin at the working directory.</summary>
    public const int WorkingDirectory = -100;

    /// <summary>STATX_TYPE: fill in the type bits of the mode.</summary>
    public const uint TypeWanted = 1;

    /// <summary>STATX_INO: fill in the number of the file on its device, which is filled in always.</summary>
    public const uint NumberWanted = 0x100;

    /// <summary>S_IFMT: the type bits of a mode.</summary>
    public const int TypeBits = 0xF000;

    /// <summary>S_IFREG.</summary>
    public const int Regular = 0x8000;

    /// <summary>S_IFDIR.</summary>
    public const int Directory = 0x4000;

    /// <summary>S_IFBLK.</summary>
    public const int BlockDevice = 0x6000;

    /// <summary>Fills <paramref name="status"/> for what the path leads to, through symbolic links; 0, or -1 on failure.</summary>
    [LibraryImport("libc", EntryPoint = "statx", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    public static partial int Query(int directory, string path, int flags, uint wanted, Fields* status);

    /// <summary>struct statx, whose layout is the same on every architecture; only what is used has a name.</summary>
    [StructLayout(LayoutKind.Explicit, Size = 256)]
    public struct Fields
    {
        /// <summary>stx_mode.</summary>
        [FieldOffset(28)]
        public ushort Mode;

        /// <summary>stx_ino</summary>
        [FieldOffset(32)]
        public ulong Number;

        /// <summary>stx_dev_major, stx_dev_minor</summary>
        [FieldOffset(136)]
        public ulong Device;
    }
}

/// <summary>Pages of memory from the C library: mmap, munmap, madvise.</summary>
internal static partial class MemoryAdvice
{
    /// <summary>PROT_READ | PROT_WRITE</summary>
    internal const int ReadWrite = 3;

    /// <summary>MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE</summary>
    internal const int PrivateAnonymous = 0x4022;

    /// <summary>MADV_HUGEPAGE</summary>
    internal const int HugePages = 14;

    /// <summary>What mmap returns when it fails.</summary>
    internal const nint Failed = -1;

    [LibraryImport("libc", EntryPoint = "mmap", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    internal static partial nint Map(nint address, nuint length, int protection, int flags, int file, nint offset);

    [LibraryImport("libc", EntryPoint = "munmap", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    internal static partial int Unmap(nint address, nuint length);

    [LibraryImport("libc", EntryPoint = "madvise", SetLastError = true)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    internal static partial int Advise(nint address, nuint length, int advice);
}
