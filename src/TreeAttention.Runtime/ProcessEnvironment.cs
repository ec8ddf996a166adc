using System;
using System.Collections.Generic;
using System.IO;
using TreeAttention.Communication;

namespace TreeAttention.Runtime;

/// <summary>What the process finds in its environment; the one place where variables are read.</summary>
public sealed record ProcessEnvironment
{
    /// <summary>Who launched the process; <see cref="LauncherEnvironment.None"/> when nobody did.</summary>
    internal LauncherEnvironment Launcher { get; init; } = LauncherEnvironment.None;

    /// <summary>A launcher (mpiexec, srun) started this process as one of several.</summary>
    public bool IsLaunched => Launcher.IsPresent;

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
