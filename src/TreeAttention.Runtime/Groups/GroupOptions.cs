using System;
using System.Collections.Generic;

namespace TreeAttention.Runtime;

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
    /// <summary>A GPU where every rank has one of its own, else the CPU; why not the GPU is said on stderr, unless there is no trace of one.</summary>
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

    /// <summary>A rank that makes no progress for so long is a fault (201).</summary>
    public TimeSpan StallTimeout { get; init; } = TimeSpan.FromSeconds(10);
}
