using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>What one rank brings to a group that NCCL connects.</summary>
/// <param name="Device">The rank's GPU.</param>
/// <param name="Control">How the ranks agree on the communicator.</param>
/// <param name="Nodes">Node of each rank, for reductions that look at the topology.</param>
/// <param name="Traffic">Counts what the rank sends.</param>
public sealed record NcclSetUp(IStreamDevice Device, IControlPlane Control, IReadOnlyList<int> Nodes, Traffic Traffic)
{
    /// <summary>NCCL_HOSTID: what this process calls its machine towards NCCL; null for the machine's own name.</summary>
    public string? HostId { get; init; }

    /// <summary>NCCL_MULTI_RANK_GPU_ENABLE: NCCL may put several ranks on one GPU.</summary>
    public bool MayShareGpus { get; init; }

    /// <summary>
    /// No other rank lives in this process. Then operations may be captured: of graphs of several communicators that one process
    /// launches, NCCL says that they have been seen to deadlock.
    /// </summary>
    public bool IsAloneInProcess { get; init; }

    /// <summary>Gives memory that the ranks of a node share (<see cref="ITransport.SharePeerMemory"/>); null where they share none.</summary>
    public Func<long, IPeerMemory?> SharePeerMemory { get; init; } = _ => null;

    /// <summary>Throws when another rank has ended the group; called now and then while this one waits.</summary>
    public Action LookForFault { get; init; } = () => { };
}
