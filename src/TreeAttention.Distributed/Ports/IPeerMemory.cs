using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Distributed.Ports;

/// <summary>A slot of memory for each rank of a node that every rank of the node can read: how states meet without messages.</summary>
/// <remarks>
/// A round: write <see cref="Mine"/>, <see cref="Publish"/>, <see cref="AwaitAll"/>, read <see cref="SlotOf"/> each rank. Rounds
/// alternate between two sets of slots, so a slot may be written again as soon as the next round begins: whoever publishes
/// round n + 1 has read round n.
/// </remarks>
internal interface IPeerMemory : IDisposable
{
    /// <summary>This round's slot of the calling rank.</summary>
    Region Mine { get; }

    /// <summary>This round's slot of <paramref name="rank"/>; readable between <see cref="AwaitAll"/> and the next <see cref="Publish"/>.</summary>
    Region SlotOf(int rank);

    /// <summary>Makes what this rank wrote to <see cref="Mine"/> visible to all.</summary>
    void Publish();

    /// <summary>Waits until every rank has published this round.</summary>
    void AwaitAll();

    /// <summary>Ends the round; <see cref="Mine"/> and <see cref="SlotOf"/> mean the next one.</summary>
    void NextRound();
}

/// <summary>Device memory with a slot for each rank of a node, into which those ranks write in the order of their streams.</summary>
/// <remarks>
/// There are two sets of slots. A round on a set: write the own slot, <see cref="Send"/>; when the host knows that a peer has sent,
/// <see cref="Await"/> it; read its slot. A set may be written again after the round on the other one was awaited.
/// </remarks>
internal interface IPeerWindow : IDisposable
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
