using System;
using System.Collections.Generic;
using System.Diagnostics.Tracing;
using System.IO;
using System.Threading;
using TreeAttention.Communication.Control;

namespace TreeAttention;

/// <summary>How the ranks of a group talk to each other.</summary>
public enum TransportKind
{
    /// <summary>MPI under an MPI launcher, else in-process ranks.</summary>
    Auto,

    /// <summary>Ranks are threads of this process.</summary>
    InProcess,

    /// <summary>Ranks are processes of an MPI job.</summary>
    Mpi,

    /// <summary>Ranks are GPUs that NCCL connects.</summary>
    Nccl,
}

/// <summary>What computes.</summary>
public enum DeviceKind
{
    /// <summary>A GPU where every rank has one of its own, else the CPU; why not the GPU is said to <see cref="GroupOptions.Log"/>, unless there is no trace of one.</summary>
    Auto,

    /// <summary>SIMD on the CPU.</summary>
    Cpu,

    /// <summary>An NVIDIA GPU.</summary>
    Cuda,
}

/// <summary>What a group of ranks is made of.</summary>
public sealed record GroupOptions
{
    /// <summary>Number of ranks; null is 1 in-process, or the size of the MPI world.</summary>
    public int? Ranks { get; init; }

    /// <summary>How the ranks talk.</summary>
    public TransportKind Transport { get; init; }

    /// <summary>What computes.</summary>
    public DeviceKind Device { get; init; }

    /// <summary>Ranks of a node may share GPUs when there are more of them than GPUs; they take the GPUs in turn.</summary>
    public bool OversubscribeGpus { get; init; }

    /// <summary>The GPU that the ranks of this process compute on, as the driver numbers those that it sees; null: the ranks of a node take them in turn.</summary>
    public int? Gpu { get; init; }

    /// <summary>Threads of each rank; null is max(1, cores / ranks of the node).</summary>
    public int? Threads { get; init; }

    /// <summary>Node of each rank, in place of what the transport finds; for tests of two-level reductions.</summary>
    public IReadOnlyList<int>? Nodes { get; init; }

    /// <summary>
    /// A rank that does not arrive for so long at what others wait in is a fault on all (201), which names it. An idle group has no deadline.
    /// <see cref="Timeout.InfiniteTimeSpan"/> waits for ever.
    /// </summary>
    public TimeSpan StallTimeout { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>Ranks that are processes must have come together within so long, else the group is not formed (201).</summary>
    public TimeSpan JoinTimeout { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>
    /// Takes what the library has to say beside exceptions: why no GPU computes, which fault ends an MPI job. It is called on any thread, shortly
    /// before the end of the process too. The library itself writes nothing to the console; null: nothing is said.
    /// </summary>
    public Action<EventLevel, string>? Log { get; init; }

    /// <summary>Says it to the log.</summary>
    internal void Tell(EventLevel level, string message) => Log?.Invoke(level, message);

    /// <summary>Throws when no group can be made of this.</summary>
    internal void RequireValid()
    {
        if (StallTimeout <= TimeSpan.Zero && StallTimeout != Timeout.InfiniteTimeSpan)
        {
            throw new ArgumentOutOfRangeException(nameof(StallTimeout), StallTimeout, "GroupOptions.StallTimeout must be positive, or Timeout.InfiniteTimeSpan.");
        }

        if (JoinTimeout <= TimeSpan.Zero)
        {
            throw new ArgumentOutOfRangeException(nameof(JoinTimeout), JoinTimeout, "GroupOptions.JoinTimeout must be positive.");
        }

        if (Threads < 1)
        {
            throw new ArgumentOutOfRangeException(nameof(Threads), Threads, "GroupOptions.Threads must be at least 1, or null for the machine's cores.");
        }

        if (Ranks < 1)
        {
            throw new ArgumentOutOfRangeException(nameof(Ranks), Ranks, "GroupOptions.Ranks must be at least 1, or null.");
        }

        if (Gpu < 0)
        {
            throw new ArgumentOutOfRangeException(nameof(Gpu), Gpu, "GroupOptions.Gpu must be the number of a GPU, or null.");
        }
    }
}

/// <summary>What the process finds in its environment; the one place where variables are read.</summary>
public sealed record ProcessEnvironment
{
    /// <summary>Who launched the process; <see cref="LauncherEnvironment.None"/> when nobody did.</summary>
    internal LauncherEnvironment Launcher { get; init; } = LauncherEnvironment.None;

    /// <summary>A launcher (mpiexec, srun) started this process as one of several.</summary>
    public bool IsLaunched => Launcher.IsPresent;

    /// <summary>This process among those that the launcher started; null when nobody says.</summary>
    internal int? Rank => Launcher.Rank;

    /// <summary>This process is rank 0, or alone: it tells what all have to say.</summary>
    public bool SpeaksForAll => Launcher is not { Rank: > 0 };

    /// <summary>TREEATTN_MPI_LIBRARY: the MPI library to load, before every other choice.</summary>
    public string? MpiLibrary { get; init; }

    /// <summary>TREEATTN_MPI_CUDA: <c>direct</c> gives MPI device addresses, <c>staged</c> goes through host memory; null is what MPI says of itself.</summary>
    public string? MpiCuda { get; init; }

    /// <summary>TREEATTN_CUDA: <c>emulated</c> puts the emulation in the place of the GPU's driver; null is the real one.</summary>
    public string? Cuda { get; init; }

    /// <summary>TREEATTN_CUDA_LIBRARY: the driver, or the emulation, to load before every other choice.</summary>
    public string? CudaLibrary { get; init; }

    /// <summary>TREEATTN_NVRTC_LIBRARY: the CUDA compiler to load before every other choice.</summary>
    public string? NvrtcLibrary { get; init; }

    /// <summary>TREEATTN_NCCL_LIBRARY: the NCCL to load before every other choice.</summary>
    public string? NcclLibrary { get; init; }

    /// <summary>NCCL_HOSTID, which NCCL itself reads: what this process calls its machine, so that several ranks may share a GPU.</summary>
    public string? NcclHostId { get; init; }

    /// <summary>NCCL_MULTI_RANK_GPU_ENABLE, which NCCL itself reads: several ranks may share a GPU.</summary>
    public bool NcclSharesGpus { get; init; }

    /// <summary>Where programs keep what they can make again: XDG_CACHE_HOME, or .cache in HOME; null when neither is set.</summary>
    public string? CacheFolder { get; init; }

    /// <summary>LD_LIBRARY_PATH.</summary>
    public string? LibraryPath { get; init; }

    /// <summary>The folders of PATH.</summary>
    public IReadOnlyList<string> SearchPath { get; init; } = [];

    /// <summary>Reads the variables of this process.</summary>
    public static ProcessEnvironment Read() => new()
    {
        Launcher = LauncherEnvironment.Read(Environment.GetEnvironmentVariable),
        MpiLibrary = NotEmpty("TREEATTN_MPI_LIBRARY"),
        MpiCuda = NotEmpty("TREEATTN_MPI_CUDA"),
        Cuda = NotEmpty("TREEATTN_CUDA"),
        CudaLibrary = NotEmpty("TREEATTN_CUDA_LIBRARY"),
        NvrtcLibrary = NotEmpty("TREEATTN_NVRTC_LIBRARY"),
        NcclLibrary = NotEmpty("TREEATTN_NCCL_LIBRARY"),
        NcclHostId = NotEmpty("NCCL_HOSTID"),
        NcclSharesGpus = NotEmpty("NCCL_MULTI_RANK_GPU_ENABLE") is { } shares && shares != "0",
        CacheFolder = NotEmpty("XDG_CACHE_HOME") ?? (NotEmpty("HOME") is { } home ? Path.Combine(home, ".cache") : null),
        LibraryPath = NotEmpty("LD_LIBRARY_PATH"),
        SearchPath = (NotEmpty("PATH") ?? "").Split(':', StringSplitOptions.RemoveEmptyEntries),
    };

    private static string? NotEmpty(string variable) => Environment.GetEnvironmentVariable(variable) is { Length: > 0 } value ? value : null;
}
