using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Distributed.Ports;

/// <summary>How an all-reduce combines elements.</summary>
internal enum ReduceOperation
{
    /// <summary>Σ over the ranks.</summary>
    Sum,

    /// <summary>The largest over the ranks.</summary>
    Max,
}

/// <summary>The data plane between the ranks: moves regions. Every rank calls the same operations in the same order.</summary>
/// <remarks>
/// Operations on device regions are enqueued in the order of the device's stream; on host regions they are done when the
/// call returns. Regions are disjoint unless an operation says that it works in place. A transport counts its own traffic.
/// Errors of the library below end as <see cref="FaultException"/> with <see cref="FaultCode.CommunicationFault"/>, a rank
/// that is gone as <see cref="FaultCode.PeerLost"/>.
/// </remarks>
internal interface ITransport : IDisposable
{
    /// <summary><c>in-process</c>, <c>mpi</c> or <c>nccl</c>.</summary>
    string Name { get; }

    /// <summary>This rank: 0 to <see cref="Size"/> - 1.</summary>
    int Rank { get; }

    /// <summary>Number of ranks.</summary>
    int Size { get; }

    /// <summary>For every rank the index of its node (ranks of one machine share it), in order of first appearance.</summary>
    IReadOnlyList<int> Nodes { get; }

    /// <summary>What this rank sent.</summary>
    Traffic Traffic { get; }

    /// <summary>Operations on device regions only take their place in the order of the device's stream: the host does not wait for them.</summary>
    bool IsStreamOrdered => false;

    /// <summary>Operations on device regions can be a part of captured work (<see cref="IStreamDevice.Capture"/>).</summary>
    bool IsCapturable => false;

    /// <summary>Sends a region to a rank; matches one <see cref="Receive"/> of the same length there, in order.</summary>
    void Send(Region region, int to);

    /// <summary>Receives from a rank exactly as many bytes as the region has.</summary>
    void Receive(Region region, int from);

    /// <summary>Sends to one rank while receiving from another (or the same) one. Either region may be empty.</summary>
    void Exchange(Region outgoing, int to, Region incoming, int from);

    /// <summary>Begins an exchange; the regions belong to the transport until <see cref="Complete"/>. At most one is under way.</summary>
    void StartExchange(Region outgoing, int to, Region incoming, int from);

    /// <summary>Waits for the exchange that <see cref="StartExchange"/> began.</summary>
    void Complete();

    /// <summary>Combines fp32 elements over all ranks, in place; every rank gets the same bits.</summary>
    void AllReduce(Region region, ReduceOperation operation);

    /// <summary>An all-reduce with the merge of states as its operator can be done (not in NCCL).</summary>
    bool CanReduceStates { get; }

    /// <summary>Folds the states of all ranks with <see cref="PartialAttention.MergeFrom"/> in one collective, in place.</summary>
    /// <exception cref="NotSupportedException"><see cref="CanReduceStates"/> is false.</exception>
    void AllReduceStates(PartialAttention state);

    /// <summary>Gathers equally long regions of all ranks, in rank order, on every rank.</summary>
    /// <param name="mine">This rank's part.</param>
    /// <param name="all">As long as the parts of all ranks.</param>
    void AllGather(Region mine, Region all);

    /// <summary>Sends part i of <paramref name="outgoing"/> to rank i and receives part i of <paramref name="incoming"/> from rank i.</summary>
    /// <param name="outgoing">The parts, one after the other.</param>
    /// <param name="outgoingBytes">[size] bytes of each part; the own part counts no traffic.</param>
    /// <param name="incoming">The parts, one after the other.</param>
    /// <param name="incomingBytes">[size] bytes of each part.</param>
    void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes);

    /// <summary>Copies the region of <paramref name="root"/> to every rank.</summary>
    void Broadcast(Region region, int root);

    /// <summary>Returns when every rank has called it.</summary>
    void Barrier();

    /// <summary>A transport among the ranks that give the same <paramref name="color"/>, ordered by <paramref name="key"/>. Every rank calls it; traffic is counted in this transport's.</summary>
    ITransport Split(int color, int key);

    /// <summary>Memory that all ranks of this transport read and write directly; null when they do not share a node.</summary>
    /// <param name="bytesPerRank">Bytes of each rank's slot.</param>
    /// <returns>Every rank calls it, and gets memory or null alike.</returns>
    IPeerMemory? SharePeerMemory(long bytesPerRank);
}

/// <summary>What one rank works with: how it talks to the others, what it computes on, and who watches it.</summary>
/// <param name="Transport">The data plane.</param>
/// <param name="Device">The rank's device.</param>
/// <param name="Control">The control plane.</param>
internal sealed record RankContext(ITransport Transport, IDevice Device, IControlPlane Control)
{
    /// <summary>Through which every call of the public face passes; parts of a group have that of the whole.</summary>
    public RankDoor Door { get; init; } = new();
}
