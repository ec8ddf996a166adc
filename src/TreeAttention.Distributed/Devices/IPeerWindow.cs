using System;
using System.Collections.Generic;

namespace TreeAttention.Distributed;

/// <summary>Device memory with a slot for each rank of a node, into which those ranks write in the order of their streams.</summary>
/// <remarks>
/// There are two sets of slots. A round on a set: write the own slot, <see cref="Send"/>; when the host knows that a peer has sent,
/// <see cref="Await"/> it; read its slot. A set may be written again after the round on the other one was awaited.
/// </remarks>
public interface IPeerWindow : IDisposable
{
    /// <summary>What peers need to reach this window; as long on every rank.</summary>
    ReadOnlyMemory<byte> Ticket { get; }

    /// <summary>Opens the windows of all ranks.</summary>
    /// <param name="tickets">[ranks] the tickets, in rank order.</param>
    /// <returns>Why a window cannot be reached; null where all can.</returns>
    string? Open(IReadOnlyList<byte[]> tickets);

    /// <summary>A rank's slot in this window.</summary>
    Region SlotOf(int set, int rank);

    /// <summary>Enqueues copies of the own slot into the windows of all others.</summary>
    void Send(int set);

    /// <summary>Lets what is enqueued from now on wait until a peer's slot has arrived.</summary>
    void Await(int set, int peer);
}
