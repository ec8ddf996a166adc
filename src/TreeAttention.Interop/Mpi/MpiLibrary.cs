using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Interop.Mpi;

/// <summary>The one MPI library of this process: found, loaded, its ABI recognised. Not yet initialised.</summary>
internal sealed unsafe class MpiLibrary
{
    private static readonly Lock _gate = new();
    private static MpiLibrary? _loaded;

    private readonly nint _handle;

    private MpiLibrary(string file, nint handle)
    {
        _handle = handle;
        NativeLibraries.Bind(MpiNative.Library, handle);
        File = file;
        Version = ReadVersion();
        Constants = MpiConstants.Of(AbiOf(handle), handle);
    }

    /// <summary>The name under which it was found.</summary>
    internal string File { get; }

    /// <summary>What it says of itself, in one line.</summary>
    internal string Version { get; }

    /// <summary>Its ABI's numbers and handles.</summary>
    internal MpiConstants Constants { get; }

    /// <summary>Whether this is Open MPI under any ABI; else it is of MPICH's family.</summary>
    internal bool IsOpenMpi => Constants.Abi == MpiAbi.OpenMpi || Version.Contains("Open MPI", StringComparison.Ordinal);

    /// <summary>It says that it reads and writes GPU memory by itself. To be asked after its initialisation; a library without the question does not.</summary>
    internal bool IsCudaAware =>
        NativeLibrary.TryGetExport(_handle, "MPIX_Query_cuda_support", out nint query) && ((delegate* unmanaged<int>)query)() == 1;

    /// <summary>What users call it: <c>Open MPI</c> or <c>MPICH</c>.</summary>
    internal string Product => IsOpenMpi ? "Open MPI" : "MPICH";

    /// <summary>Loads the first of the candidates that can be loaded; a process has one MPI, so a second call returns the first library.</summary>
    /// <exception cref="DllNotFoundException">None can be loaded; the message says why, one candidate a line.</exception>
    internal static MpiLibrary Load(IReadOnlyList<string> candidates)
    {
        lock (_gate)
        {
            return _loaded ??= LoadFirst(candidates);
        }
    }

    /// <summary>The files of native MPI libraries that this process has mapped, whoever loaded them.</summary>
    internal static IReadOnlyList<string> MappedFiles() =>
        [.. System.IO.File.ReadLines("/proc/self/maps").Select(PathIn).Where(path => FamilyOf(path) != null).Distinct()];

    /// <summary>The files of MPI libraries that this process has mapped, best first: that of the standard interface, whose handles its user has, then native ones.</summary>
    internal static IReadOnlyList<string> MappedCandidates() =>
    [
        .. System.IO.File.ReadLines("/proc/self/maps").Select(PathIn)
            .Where(path => Path.GetFileName(path).StartsWith("libmpi_abi.so", StringComparison.Ordinal)).Distinct(),
        .. MappedFiles(),
    ];

    /// <summary>MPI was initialised in this process and not yet left.</summary>
    internal static bool IsRunning
    {
        get
        {
            int begun = 0;
            int ended = 0;
            return MpiNative.Initialized(&begun) == 0 && begun != 0 && MpiNative.Finalized(&ended) == 0 && ended == 0;
        }
    }

    /// <summary>Whether a file name is that of Open MPI's native library (true), of MPICH's (false), or of neither (null).</summary>
    internal static bool? FamilyOf(string path)
    {
        string name = Path.GetFileName(path);
        return name.StartsWith("libmpi.so.40", StringComparison.Ordinal) ? true
            : name.StartsWith("libmpi.so.12", StringComparison.Ordinal) || name.StartsWith("libmpich.so", StringComparison.Ordinal) ? false
            : null;
    }

    private static string PathIn(string line)
    {
        int slash = line.IndexOf('/', StringComparison.Ordinal);
        return slash < 0 ? "" : line[slash..];
    }

    private static MpiLibrary LoadFirst(IReadOnlyList<string> candidates)
    {
        // UCX, below MPICH and some Open MPI, takes SIGSEGV and SIGFPE from .NET in its constructor: a NullReferenceException
        // would end the process. It must find this variable when it is loaded. What the user has set stays.
        LibC.SetEnvironment("UCX_ERROR_SIGNALS", "SIGILL", overwrite: 0);
        var failures = new List<string>();
        foreach (string candidate in candidates)
        {
            try
            {
                nint handle = NativeLibrary.Load(candidate);

                // Plug-ins of Open MPI look for its symbols in the global scope; .NET loads into a local one.
                LibC.OpenLibrary(candidate, LibC.LoadLazily | LibC.LoadGlobally | LibC.LoadNothingNew);
                return new MpiLibrary(candidate, handle);
            }
            catch (Exception error) when (error is DllNotFoundException or BadImageFormatException)
            {
                failures.Add($"{candidate}: {FirstReason(error.Message, candidate)}");
            }
        }

        throw new DllNotFoundException(string.Join('\n', failures));
    }

    // The run time tells of every name that it tried; the loader's own sentence about the candidate says it all.
    private static string FirstReason(string message, string candidate)
    {
        string line = message.Split('\n').FirstOrDefault(part => part.StartsWith(candidate + ":", StringComparison.Ordinal)) ?? message.Split('\n')[0];
        return line.StartsWith(candidate + ": ", StringComparison.Ordinal) ? line[(candidate.Length + 2)..] : line;
    }

    // Native MPICH 5 and Open MPI 6 export MPI_Abi_get_version too and answer -1: the symbol alone proves nothing.
    private static MpiAbi AbiOf(nint handle)
    {
        if (NativeLibrary.TryGetExport(handle, "MPI_Abi_get_version", out nint function))
        {
            int major = -1;
            int minor = -1;
            if (((delegate* unmanaged<int*, int*, int>)function)(&major, &minor) == 0 && major >= 1)
            {
                return MpiAbi.Standard;
            }
        }

        return NativeLibrary.TryGetExport(handle, "ompi_mpi_comm_world", out _) ? MpiAbi.OpenMpi : MpiAbi.Mpich;
    }

    // May be called before MPI_Init. The length of Open MPI includes the final NUL.
    private static string ReadVersion()
    {
        byte* text = stackalloc byte[MpiConstants.MaxVersionString];
        int length = 0;
        return MpiNative.GetLibraryVersion(text, &length) != 0 ? "unknown version"
            : Encoding.UTF8.GetString(text, length).TrimEnd('\0', '\n', ' ').Split('\n')[0].TrimEnd();
    }
}
