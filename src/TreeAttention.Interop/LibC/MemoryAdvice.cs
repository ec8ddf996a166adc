using System.Runtime.InteropServices;

namespace TreeAttention.Interop;

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
