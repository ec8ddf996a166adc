using System.Runtime.InteropServices;

namespace TreeAttention.Interop.Mpi;

/// <summary>The functions of MPI that are called, the same declarations for every ABI; <see cref="MpiLibrary"/> says which library.</summary>
internal static unsafe partial class MpiNative
{
    internal const string Library = "mpi";

    [LibraryImport(Library, EntryPoint = "MPI_Get_library_version")]
    internal static partial int GetLibraryVersion(byte* text, int* length);

    [LibraryImport(Library, EntryPoint = "MPI_Init_thread")]
    internal static partial int InitThread(int* argc, byte*** argv, int required, int* provided);

    [LibraryImport(Library, EntryPoint = "MPI_Initialized")]
    internal static partial int Initialized(int* flag);

    [LibraryImport(Library, EntryPoint = "MPI_Finalized")]
    internal static partial int Finalized(int* flag);

    [LibraryImport(Library, EntryPoint = "MPI_Finalize")]
    internal static partial int FinalizeLibrary();

    [LibraryImport(Library, EntryPoint = "MPI_Abort")]
    internal static partial int Abort(nint communicator, int code);

    [LibraryImport(Library, EntryPoint = "MPI_Error_class")]
    internal static partial int ErrorClass(int code, int* errorClass);

    [LibraryImport(Library, EntryPoint = "MPI_Error_string")]
    internal static partial int ErrorString(int code, byte* text, int* length);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_set_errhandler")]
    internal static partial int SetErrorHandler(nint communicator, nint handler);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_rank")]
    internal static partial int CommRank(nint communicator, int* rank);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_size")]
    internal static partial int CommSize(nint communicator, int* size);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_dup")]
    internal static partial int CommDup(nint communicator, nint* created);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_split")]
    internal static partial int CommSplit(nint communicator, int color, int key, nint* created);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_split_type")]
    internal static partial int CommSplitType(nint communicator, int type, int key, nint info, nint* created);

    [LibraryImport(Library, EntryPoint = "MPI_Comm_free")]
    internal static partial int CommFree(nint* communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Type_contiguous")]
    internal static partial int TypeContiguous(int count, nint element, nint* created);

    [LibraryImport(Library, EntryPoint = "MPI_Type_commit")]
    internal static partial int TypeCommit(nint* type);

    [LibraryImport(Library, EntryPoint = "MPI_Type_free")]
    internal static partial int TypeFree(nint* type);

    [LibraryImport(Library, EntryPoint = "MPI_Op_create")]
    internal static partial int OpCreate(delegate* unmanaged[Cdecl]<void*, void*, int*, void*, void> function, int commute, nint* created);

    [LibraryImport(Library, EntryPoint = "MPI_Op_free")]
    internal static partial int OpFree(nint* operation);

    [LibraryImport(Library, EntryPoint = "MPI_Isend")]
    internal static partial int Isend(nint buffer, int count, nint type, int to, int tag, nint communicator, nint* request);

    [LibraryImport(Library, EntryPoint = "MPI_Irecv")]
    internal static partial int Irecv(nint buffer, int count, nint type, int from, int tag, nint communicator, nint* request);

    [LibraryImport(Library, EntryPoint = "MPI_Send")]
    internal static partial int Send(nint buffer, int count, nint type, int to, int tag, nint communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Recv")]
    internal static partial int Recv(nint buffer, int count, nint type, int from, int tag, nint communicator, nint status);

    [LibraryImport(Library, EntryPoint = "MPI_Test")]
    internal static partial int Test(nint* request, int* done, nint status);

    [LibraryImport(Library, EntryPoint = "MPI_Wait")]
    internal static partial int Wait(nint* request, nint status);

    [LibraryImport(Library, EntryPoint = "MPI_Barrier")]
    internal static partial int Barrier(nint communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Ibarrier")]
    internal static partial int Ibarrier(nint communicator, nint* request);

    [LibraryImport(Library, EntryPoint = "MPI_Bcast")]
    internal static partial int Bcast(nint buffer, int count, nint type, int root, nint communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Ibcast")]
    internal static partial int Ibcast(nint buffer, int count, nint type, int root, nint communicator, nint* request);

    [LibraryImport(Library, EntryPoint = "MPI_Allreduce")]
    internal static partial int Allreduce(nint mine, nint result, int count, nint type, nint operation, nint communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Iallreduce")]
    internal static partial int Iallreduce(
        nint mine, nint result, int count, nint type, nint operation, nint communicator, nint* request);

    [LibraryImport(Library, EntryPoint = "MPI_Allgather")]
    internal static partial int Allgather(
        nint mine, int count, nint type, nint all, int countOfEach, nint typeOfEach, nint communicator);

    [LibraryImport(Library, EntryPoint = "MPI_Iallgather")]
    internal static partial int Iallgather(
        nint mine, int count, nint type, nint all, int countOfEach, nint typeOfEach, nint communicator, nint* request);
}
