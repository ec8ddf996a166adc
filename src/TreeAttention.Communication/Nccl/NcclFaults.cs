using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>What goes wrong with NCCL, in the words that the user reads.</summary>
internal static class NcclFaults
{
    private const string WithoutNccl = "or do without NCCL: --transport mpi under mpiexec, --transport in-process alone";

    /// <summary>A call, or what it enqueued, failed.</summary>
    internal static FaultException Of(NcclCommunicator communicator, ncclResult_t result, string operation, long bytes)
    {
        string what = bytes > 0 ? $"{operation} of {bytes:N0} bytes" : operation;
        return new FaultException(
            FaultCode.CommunicationFault,
            $"Rank {communicator.Rank} of {communicator.Size}: {what} failed in NCCL with {NcclLibrary.Describe(result, communicator.Handle)}. "
            + "Look for the first rank that failed; NCCL_DEBUG=INFO tells more.")
        { Rank = communicator.Rank };
    }

    /// <summary>None of the candidates can be loaded.</summary>
    internal static FaultException NoLibrary(IReadOnlyList<string> candidates, DllNotFoundException error) => new(
        FaultCode.Unavailable,
        $"--transport nccl: {string.Join(", ", candidates)} was not found. Install NCCL 2 (libnccl2), name the library with "
        + $"TREEATTN_NCCL_LIBRARY, {WithoutNccl}.",
        error);

    /// <summary>The library is older than the calls that are made.</summary>
    internal static FaultException TooOld(string file, int version) => new(
        FaultCode.Unavailable,
        $"--transport nccl: {file} is NCCL {NcclLibrary.Describe(version)}, but {NcclLibrary.Describe(NcclLibrary.OldestVersion)} is the oldest that "
        + $"will do. Install a newer one, name it with TREEATTN_NCCL_LIBRARY, {WithoutNccl}.");

    /// <summary>Two ranks on one GPU, which NCCL refuses on single ranks only; null when there are none.</summary>
    /// <param name="places">Machine and GPU of each rank.</param>
    internal static FaultException? SharedGpu(IReadOnlyList<string> places)
    {
        IGrouping<string, int>? shared = Enumerable.Range(0, places.Count).GroupBy(rank => places[rank]).FirstOrDefault(group => group.Count() > 1);
        return shared is null ? null : new FaultException(
            FaultCode.Unavailable,
            $"--transport nccl: ranks {string.Join(", ", shared)} compute on the same GPU ({shared.Key}), but NCCL wants a GPU for each rank. Start no "
            + "more ranks on a machine than it has GPUs, or let them share one without NCCL (--transport mpi or in-process); for a test, give each "
            + "process an NCCL_HOSTID of its own, or NCCL_MULTI_RANK_GPU_ENABLE=1 from NCCL 2.30 on.")
        { IsAgreed = true };
    }
}
