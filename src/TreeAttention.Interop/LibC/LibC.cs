using System.Runtime.InteropServices;

namespace TreeAttention.Interop;

/// <summary>The few calls of the C library that .NET does not offer (linux-x64).</summary>
internal static unsafe partial class LibC
{
    internal const int OpenReadWrite = 0x2;
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
