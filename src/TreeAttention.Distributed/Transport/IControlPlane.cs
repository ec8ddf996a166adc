using System;
using System.Collections.Generic;

namespace TreeAttention.Distributed;

/// <summary>The small second plane between the ranks, the same for every transport: agreement before work, heartbeats, abort.</summary>
/// <remarks>It never carries tensors, works while a collective hangs, and counts its bytes as control bytes.</remarks>
public interface IControlPlane : IDisposable
{
    /// <summary>This rank.</summary>
    int Rank { get; }

    /// <summary>Number of ranks.</summary>
    int Size { get; }

    /// <summary>Gathers a few bytes of every rank on every rank, in rank order.</summary>
    /// <exception cref="FaultException">A rank is gone (200) or did not answer in time (201); the message names it.</exception>
    IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine);

    /// <summary>Tells that this rank begins an operation; heartbeats carry the latest. Allocates nothing.</summary>
    /// <param name="operation">A constant name: <c>ring hop</c>, <c>all-reduce</c>.</param>
    void Enter(string operation);

    /// <summary>Tells that this rank finished the operation.</summary>
    void Leave();

    /// <summary>Ends the whole group: every rank leaves with this code. Returns only for in-process ranks.</summary>
    void Abort(FaultCode code, string reason);
}
