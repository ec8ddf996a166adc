using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The first fault of a group of in-process ranks; whoever waits leaves with it.</summary>
internal sealed class GroupFault
{
    private FaultException? _first;

    /// <summary>The fault that ended the group; null while it works.</summary>
    public FaultException? First => Volatile.Read(ref _first);

    /// <summary>Ends the group; only the first call counts.</summary>
    public void Raise(FaultException fault) => Interlocked.CompareExchange(ref _first, fault, null);

    /// <summary>Throws when the group was ended.</summary>
    public void ThrowIfRaised()
    {
        if (First is { } fault)
        {
            throw new FaultException(FaultCode.PeerLost, $"Rank {fault.Rank} ended the group: {fault.Message}", fault)
            {
                Rank = fault.Rank,
            };
        }
    }
}
