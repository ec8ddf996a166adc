using System.Collections.Generic;

namespace TreeAttention.Devices;

/// <summary>Where the CUDA libraries come from and where compiled kernels are kept.</summary>
public sealed record CudaOptions
{
    /// <summary>Names under which the driver is looked for, in this order.</summary>
    public IReadOnlyList<string> DriverCandidates { get; init; } = ["libcuda.so.1"];

    /// <summary>Names under which the run-time compiler is looked for, in this order.</summary>
    public IReadOnlyList<string> CompilerCandidates { get; init; } =
        ["libnvrtc.so.13", "libnvrtc.so.12", "/usr/local/cuda/lib64/libnvrtc.so.13", "/usr/local/cuda/lib64/libnvrtc.so.12"];

    /// <summary>The libraries are the emulation: kernels run on the CPU.</summary>
    public bool IsEmulated { get; init; }

    /// <summary>What a user can do where there is no GPU, for messages; null for nothing, because it is done already.</summary>
    public string? WayOut { get; init; } = "run with --device cpu";

    /// <summary>Folder of compiled kernels; null keeps none.</summary>
    public string? CacheFolder { get; init; }
}
