using System.Runtime.InteropServices;

namespace TreeAttention.Interop.Mpi;

/// <summary>The constants of one MPI library, as its own mpi.h has them.</summary>
/// <remarks>
/// Every handle is carried as a <c>nint</c>. An integer handle of MPICH is zero-extended: the callee reads an int argument
/// from the low half of the register, and writes an out-handle into the low half of a zeroed slot.
/// </remarks>
internal sealed class MpiConstants
{
    internal const int Undefined = -32766;
    internal const int MaxErrorString = 1024;
    internal const int MaxVersionString = 8192;

    private static readonly string[] _classNames =
    [
        "MPI_SUCCESS", "MPI_ERR_BUFFER", "MPI_ERR_COUNT", "MPI_ERR_TYPE", "MPI_ERR_TAG", "MPI_ERR_COMM", "MPI_ERR_RANK",
        "MPI_ERR_REQUEST", "MPI_ERR_ROOT", "MPI_ERR_GROUP", "MPI_ERR_OP", "MPI_ERR_TOPOLOGY", "MPI_ERR_DIMS", "MPI_ERR_ARG",
        "MPI_ERR_UNKNOWN", "MPI_ERR_TRUNCATE", "MPI_ERR_OTHER", "MPI_ERR_INTERN",
    ];

    // MPICH has no MPI_ERR_REQUEST at 7: the classes behind it are one lower, and it comes last.
    private static readonly string[] _classNamesOfMpich =
        [.. _classNames[..7], .. _classNames[8..], "MPI_ERR_IN_STATUS", "MPI_ERR_PENDING", "MPI_ERR_REQUEST"];

    private MpiConstants(MpiAbi abi) => Abi = abi;

    internal MpiAbi Abi { get; }

    internal required nint CommWorld { get; init; }

    internal required nint CommNull { get; init; }

    internal required nint Float { get; init; }

    internal required nint Byte { get; init; }

    internal required nint Sum { get; init; }

    internal required nint Max { get; init; }

    internal required nint ErrorsReturn { get; init; }

    internal required nint InfoNull { get; init; }

    internal nint InPlace => Abi == MpiAbi.Mpich ? -1 : 1;

    internal nint StatusIgnore => Abi == MpiAbi.Mpich ? 1 : 0;

    internal int CommTypeShared => Abi switch { MpiAbi.OpenMpi => 0, MpiAbi.Mpich => 1, _ => 221 };

    internal int ThreadMultiple => Abi == MpiAbi.Standard ? 4096 : 3;

    /// <summary>The constants of the library, whose ABI is known.</summary>
    internal static MpiConstants Of(MpiAbi abi, nint library) => abi switch
    {
        MpiAbi.OpenMpi => new MpiConstants(abi)
        {
            CommWorld = NativeLibrary.GetExport(library, "ompi_mpi_comm_world"),
            CommNull = NativeLibrary.GetExport(library, "ompi_mpi_comm_null"),
            Float = NativeLibrary.GetExport(library, "ompi_mpi_float"),
            Byte = NativeLibrary.GetExport(library, "ompi_mpi_byte"),
            Sum = NativeLibrary.GetExport(library, "ompi_mpi_op_sum"),
            Max = NativeLibrary.GetExport(library, "ompi_mpi_op_max"),
            ErrorsReturn = NativeLibrary.GetExport(library, "ompi_mpi_errors_return"),
            InfoNull = NativeLibrary.GetExport(library, "ompi_mpi_info_null"),
        },
        MpiAbi.Mpich => new MpiConstants(abi)
        {
            CommWorld = 0x44000000,
            CommNull = 0x04000000,
            Float = 0x4c00040a,
            Byte = 0x4c00010d,
            Sum = 0x58000003,
            Max = 0x58000001,
            ErrorsReturn = 0x54000001,
            InfoNull = 0x1c000000,
        },
        _ => new MpiConstants(abi)
        {
            CommWorld = 0x101,
            CommNull = 0x100,
            Float = 0x210,
            Byte = 0x247,
            Sum = 0x21,
            Max = 0x23,
            ErrorsReturn = 0x143,
            InfoNull = 0x130,
        },
    };

    /// <summary>The handle that a callback's <c>MPI_Datatype*</c> points to: 4 bytes in MPICH, 8 elsewhere.</summary>
    internal unsafe nint HandleAt(void* slot) => Abi == MpiAbi.Mpich ? (nint)(*(uint*)slot) : *(nint*)slot;

    /// <summary>The name of an error class: <c>MPI_ERR_TRUNCATE</c>.</summary>
    internal string ErrorClassName(int errorClass)
    {
        string[] names = Abi == MpiAbi.Mpich ? _classNamesOfMpich : _classNames;
        return errorClass >= 0 && errorClass < names.Length ? names[errorClass] : $"MPI error class {errorClass}";
    }
}

/// <summary>The binary interfaces of MPI: what a handle is and which numbers the constants have.</summary>
internal enum MpiAbi
{
    /// <summary>libmpi.so.40: handles are pointers.</summary>
    OpenMpi,

    /// <summary>libmpich.so.12, libmpi.so.12 (MPICH, Intel MPI, MVAPICH): handles are 32-bit integers.</summary>
    Mpich,

    /// <summary>libmpi_abi.so.1: the interface that MPI 5 standardised; handles are pointers with small values.</summary>
    Standard,
}
