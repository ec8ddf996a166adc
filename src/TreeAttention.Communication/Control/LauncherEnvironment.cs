using System;
using System.Collections.Generic;
using System.Globalization;
using System.Text;

namespace TreeAttention.Communication.Control;

/// <summary>What the launcher of an MPI job tells the process about itself, before any MPI library is loaded.</summary>
/// <remarks>It serves to choose the library and to notice a wrong one. The ranks themselves are numbered by the library.</remarks>
/// <param name="Name">The launcher, as users know it; null when there is none.</param>
/// <param name="IsOpenMpi">The launcher speaks Open MPI's protocol (PMIx); else that of MPICH's family (PMI).</param>
/// <param name="Size">Processes that it started; null when it does not say.</param>
/// <param name="Rank">This process among them; null when it does not say.</param>
internal sealed record LauncherEnvironment(string? Name, bool IsOpenMpi, int? Size, int? Rank)
{
    /// <summary>The variable with the address of rank 0 that makes processes ranks without any launcher, by NCCL.</summary>
    public const string RendezvousVariable = "TREEATTN_RENDEZVOUS";

    private static readonly string[] _openMpi = ["libmpi.so.40", "libmpi_abi.so.1"];
    private static readonly string[] _mpich = ["libmpich.so.12", "libmpi.so.12", "libmpi_abi.so.1"];

    /// <summary>No launcher: the process was started alone.</summary>
    public static LauncherEnvironment None { get; } = new(null, IsOpenMpi: false, null, null);

    /// <summary>Where the ranks can meet without MPI: host and port of rank 0; null where nobody says.</summary>
    public string? Rendezvous { get; init; }

    /// <summary>What the launcher calls this run, where it says so: two steps of one allocation are two runs.</summary>
    public string? Job { get; init; }

    /// <summary>The process is one of a launcher's.</summary>
    public bool IsPresent => Name != null;

    /// <summary>Library names to try, best first.</summary>
    public IReadOnlyList<string> Candidates => IsOpenMpi || !IsPresent ? [.. _openMpi, .. _mpich[..2]] : [.. _mpich, _openMpi[0]];

    /// <summary>Reads the launcher's variables.</summary>
    /// <param name="read">Gives the value of an environment variable, or null.</param>
    public static LauncherEnvironment Read(Func<string, string?> read)
    {
        if (read(RendezvousVariable) is { Length: > 0 } address)
        {
            return new(RendezvousVariable, IsOpenMpi: false, Number("TREEATTN_WORLD_SIZE") ?? Number("SLURM_STEP_NUM_TASKS"), Number("TREEATTN_RANK") ?? Number("SLURM_PROCID"))
            {
                Rendezvous = address,
                Job = SlurmJob(read),
            };
        }

        if (read("OMPI_COMM_WORLD_SIZE") != null)
        {
            return new("Open MPI's mpiexec", IsOpenMpi: true, Number("OMPI_COMM_WORLD_SIZE"), Number("OMPI_COMM_WORLD_RANK"));
        }

        bool slurm = read("SLURM_STEP_ID") != null;
        if (read("PMI_RANK") != null || read("PMI_SIZE") != null)
        {
            return new(slurm ? "Slurm's srun (PMI)" : "MPICH's mpiexec", IsOpenMpi: false, Number("PMI_SIZE"), Number("PMI_RANK"));
        }

        if (read("PMIX_RANK") == null && slurm && Number("SLURM_STEP_NUM_TASKS") is > 1)
        {
            return new("Slurm's srun without an MPI plug-in", IsOpenMpi: true, Number("SLURM_STEP_NUM_TASKS"), Number("SLURM_PROCID"))
            {
                Rendezvous = SlurmRendezvous(read("SLURM_STEP_NODELIST"), Number("SLURM_JOB_ID") ?? 0, Number("SLURM_STEP_ID") ?? 0),
                Job = SlurmJob(read),
            };
        }

        return read("PMIX_RANK") == null ? None
            : new(slurm ? "Slurm's srun (PMIx)" : "a PMIx launcher", IsOpenMpi: true, slurm ? Number("SLURM_STEP_NUM_TASKS") : null, Number("PMIX_RANK"));

        int? Number(string variable) =>
            int.TryParse(read(variable), NumberStyles.None, CultureInfo.InvariantCulture, out int value) ? value : null;
    }

    private static string? SlurmJob(Func<string, string?> read) =>
        read("SLURM_JOB_ID") is { Length: > 0 } job && read("SLURM_STEP_ID") is { Length: > 0 } step ? $"{job}.{step}" : null;

    // The first node of the step has rank 0. Jobs and steps that share a node get ports of their own.
    private static string? SlurmRendezvous(string? nodes, int job, int step) => string.IsNullOrEmpty(nodes) ? null
        : string.Create(CultureInfo.InvariantCulture, $"{FirstNode(nodes)}:{20000 + (((job * 16L) + step) % 20000)}");

    // Of gpu[003-007,9]-ib,cpu1 that is gpu003-ib: of each bracket the first number, up to the first comma outside of brackets.
    private static string FirstNode(string nodes)
    {
        var first = new StringBuilder();
        for (int at = 0; at < nodes.Length && nodes[at] != ',';)
        {
            if (nodes[at] != '[')
            {
                first.Append(nodes[at++]);
                continue;
            }

            int close = nodes.IndexOf(']', at);
            string numbers = close < 0 ? nodes[(at + 1)..] : nodes[(at + 1)..close];
            int stop = numbers.IndexOfAny(['-', ',']);
            first.Append(stop < 0 ? numbers : numbers[..stop]);
            at = close < 0 ? nodes.Length : close + 1;
        }

        return first.ToString();
    }
}
