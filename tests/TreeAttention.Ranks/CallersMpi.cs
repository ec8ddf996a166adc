using System;
using System.Runtime.InteropServices;

namespace TreeAttention.Ranks;

/// <summary>MPI as a program calls it that knows nothing of ours: its own binding, its own MPI_Init, its own communicators.</summary>
internal sealed unsafe partial class CallersMpi
{
    private readonly nint _library;
    private readonly nint _world;

    /// <summary>Loads the library of the launcher that started the process.</summary>
    internal CallersMpi()
    {
        bool isOpenMpi = Environment.GetEnvironmentVariable("OMPI_COMM_WORLD_SIZE") is not null;

        _library = NativeLibrary.Load(isOpenMpi ? "libmpi.so.40" : "libmpich.so.12");
        _world = isOpenMpi ? NativeLibrary.GetExport(_library, "ompi_mpi_comm_world") : 0x44000000;
        Null = isOpenMpi ? NativeLibrary.GetExport(_library, "ompi_mpi_comm_null") : 0x04000000;
        if (isOpenMpi)
        {
            Check.That(dlopen("libmpi.so.40", 0x102) != 0, "libmpi.so.40 is not there"); // plug-ins look for its symbols in the global scope
        }
    }

    internal nint Null { get; }

    internal int Rank
    {
        get
        {
            int rank;
            Require(((delegate* unmanaged<nint, int*, int>)Function("MPI_Comm_rank"))(_world, &rank));
            return rank;
        }
    }

    // One thread may call.
    internal void Init() => Require(((delegate* unmanaged<nint, nint, int>)Function("MPI_Init"))(0, 0));

    internal nint Split(int color, int key)
    {
        nint part = 0;
        Require(((delegate* unmanaged<nint, int, int, nint*, int>)Function("MPI_Comm_split"))(_world, color, key, &part));
        return part;
    }

    internal void Free(nint communicator) => Require(((delegate* unmanaged<nint*, int>)Function("MPI_Comm_free"))(&communicator));

    internal void Barrier() => Require(((delegate* unmanaged<nint, int>)Function("MPI_Barrier"))(_world));

    internal void Complete() => Require(((delegate* unmanaged<int>)Function("MPI_Finalize"))());

    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    [DefaultDllImportSearchPaths(DllImportSearchPath.SafeDirectories)]
    private static partial nint dlopen(string file, int flags);

    private static void Require(int error) => Check.Equal(0, error, "an error of MPI");

    private nint Function(string name) => NativeLibrary.GetExport(_library, name);
}
