using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>Set-ups that would run and be wrong, in the words that the user reads.</summary>
internal static class MpiRefusals
{
    /// <summary>None of the candidates could be loaded.</summary>
    internal static FaultException NoLibrary(IReadOnlyList<string> candidates, DllNotFoundException error) => new(
        FaultCode.Unavailable,
        $"No MPI library could be loaded; tried {string.Join(", ", candidates)}. Install Open MPI (libmpi.so.40) or MPICH (libmpich.so.12, "
        + "libmpi.so.12, libmpi_abi.so.1), name one with TREEATTN_MPI_LIBRARY, or run without MPI: --transport in-process.\n" + error.Message,
        error);

    /// <summary>MPI runs already: the process has initialised it itself.</summary>
    internal static FaultException RunsAlready(MpiLibrary library) => new(
        FaultCode.CommandLine,
        $"{library.Product} ({library.File}) is initialised in this process already. Give the communicator to join over: AttentionGroup.JoinMpi(communicator).");

    /// <summary>A communicator is given, but no MPI has it.</summary>
    internal static FaultException DoesNotRun(string why) => new(
        FaultCode.CommandLine,
        $"A communicator of MPI is given, but {why}. Initialise MPI, join over a communicator while it lasts, and dispose of the group before MPI_Finalize.");

    /// <summary>The launcher started another number of processes than the library sees: it is another MPI's launcher.</summary>
    internal static FaultException OtherWorld(LauncherEnvironment launcher, MpiLibrary library, int seen) => new(
        FaultCode.RanksDisagree,
        $"{launcher.Size} {(launcher.Size == 1 ? "process was" : "processes were")} started by {launcher.Name}, but this process loaded "
        + $"{library.Product} ({library.File}) and sees {seen} {(seen == 1 ? "rank" : "ranks")}: each process would work alone. "
        + $"Start it with {(library.IsOpenMpi ? "mpiexec.openmpi" : "mpiexec.mpich")}, or set TREEATTN_MPI_LIBRARY to the launcher's own library.")
    { Rank = launcher.Rank };

    /// <summary>Another MPI than the loaded one is mapped too: calls of one would reach the other.</summary>
    /// <returns>Null when all is well.</returns>
    internal static FaultException? TwoLibraries(MpiLibrary library, IReadOnlyList<string> mapped)
    {
        string? other = mapped.FirstOrDefault(file => MpiLibrary.FamilyOf(file) != library.IsOpenMpi);
        return other == null ? null : new FaultException(
            FaultCode.RanksDisagree,
            $"Two MPI libraries are in this process: {mapped.FirstOrDefault(file => file != other, library.File)} ({library.Product}) was loaded, but "
            + $"{other} was there already (by LD_PRELOAD, or by a library that links it). Unload that one, or name the one to use: "
            + "TREEATTN_MPI_LIBRARY=/path/to/libmpi.so.");
    }
}
