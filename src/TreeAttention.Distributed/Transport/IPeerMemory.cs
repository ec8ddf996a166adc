using System;

namespace TreeAttention.Distributed;

/// <summary>A slot of memory for each rank of a node that every rank of the node can read: how states meet without messages.</summary>
/// <remarks>
/// A round: write <see cref="Mine"/>, <see cref="Publish"/>, <see cref="AwaitAll"/>, read <see cref="SlotOf"/> each rank. Rounds
/// alternate between two sets of slots, so a slot may be written again as soon as the next round begins: whoever publishes
/// round n + 1 has read round n.
/// </remarks>
public interface IPeerMemory : IDisposable
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
