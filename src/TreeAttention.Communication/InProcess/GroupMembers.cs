using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Which ranks of a group are still there.</summary>
internal sealed class GroupMembers(int ranks, GroupFault fault)
{
    /// <summary>In place of a rank: any of them.</summary>
    public const int Any = -1;

    private readonly bool[] _left = new bool[ranks];

    /// <summary>The fault that ended the group and every group it was split from.</summary>
    public GroupFault Fault => fault;

    /// <summary>Tells that a rank takes part in nothing more.</summary>
    public void Leave(int rank) => Volatile.Write(ref _left[rank], true);

    /// <summary>The group was ended, or the rank that is waited for left.</summary>
    public bool IsLost(int peer) => fault.First is not null || FirstLeft(peer) >= 0;

    /// <summary>Throws for a wait that cannot end.</summary>
    /// <exception cref="FaultException">Peer lost (200).</exception>
    public void ThrowLost(int peer)
    {
        fault.ThrowIfRaised();
        int rank = FirstLeft(peer);
        throw fault.End(new FaultException(
            FaultCode.PeerLost,
            $"Rank {rank} of {_left.Length} left the group while another rank waited for it: every rank must take part in the same "
            + "operations in the same order.")
        {
            Rank = rank,
        });
    }

    private int FirstLeft(int peer)
    {
        for (int rank = 0; rank < _left.Length; rank++)
        {
            if ((peer == Any || peer == rank) && Volatile.Read(ref _left[rank]))
            {
                return rank;
            }
        }

        return -1;
    }
}
