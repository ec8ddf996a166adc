using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Slots in the memory of the process that all in-process ranks read.</summary>
internal sealed class InProcessPeerMemory(GroupBoard group, PeerBoard slots, int rank) : IPeerMemory
{
    private int _round;
    private bool _disposed;

    /// <inheritdoc/>
    public Region Mine => slots.Slot(rank, _round);

    /// <inheritdoc/>
    public Region SlotOf(int rank) => slots.Slot(rank, _round);

    /// <inheritdoc/>
    public void Publish()
    {
        Volatile.Write(ref slots.Published(rank), _round + 1);
        foreach (RankGate gate in group.Gates)
        {
            gate.Wake();
        }
    }

    /// <inheritdoc/>
    public void AwaitAll()
    {
        // A rank that is ahead has published this round and at most the next.
        for (int other = 0; other < group.Size; other++)
        {
            group.Gates[rank].WaitWhileEqual(ref slots.Published(other), _round, group.Members, other);
        }
    }

    /// <inheritdoc/>
    public void NextRound() => _round++;

    /// <inheritdoc/>
    public void Dispose()
    {
        if (!_disposed)
        {
            _disposed = true;
            slots.Dispose();
        }
    }
}
