using System;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The memory behind the <see cref="PeerSlots"/> of in-process ranks: the last rank that disposes of its view frees it.</summary>
internal sealed class PeerBoard : IDisposable
{
    private readonly HostMemory _memory;
    private readonly int _ranks;
    private readonly long _bytesPerRank;
    private int _users;

    public PeerBoard(int ranks, long bytesPerRank)
    {
        _memory = new HostMemory(PeerSlots.BytesFor(ranks, bytesPerRank), ElementType.Byte);
        (_ranks, _bytesPerRank, _users) = (ranks, bytesPerRank, ranks);
    }

    /// <summary>One rank's view.</summary>
    public PeerSlots ViewOf(int rank, GroupMembers members)
    {
        bool seenLost = false;

        // A rank may publish its last round and leave while this one still polls; so only the second look counts, after
        // the awaited rounds were read once more.
        void Check()
        {
            if (members.IsLost(GroupMembers.Any))
            {
                if (seenLost)
                {
                    members.ThrowLost(GroupMembers.Any);
                }

                seenLost = true;
            }
        }

        bool polite = _ranks > Environment.ProcessorCount;
        return new PeerSlots(_memory.Region.Address, rank, _ranks, _bytesPerRank, polite, Check, Dispose);
    }

    /// <summary>A rank uses the memory no longer.</summary>
    public void Dispose()
    {
        if (Interlocked.Decrement(ref _users) == 0)
        {
            _memory.Dispose();
        }
    }
}
