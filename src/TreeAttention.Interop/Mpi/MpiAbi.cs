namespace TreeAttention.Interop;

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
