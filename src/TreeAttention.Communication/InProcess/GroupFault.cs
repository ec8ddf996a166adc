using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The first fault of a group of in-process ranks, and who reads or writes another rank's memory just now.</summary>
/// <remarks>
/// A rank that leaves with a fault frees its memory. So it first raises the fault, after which nobody begins to touch
/// another rank's memory, and then waits for those that are at it.
/// </remarks>
internal sealed class GroupFault
{
    private FaultException? _first;
    private int _touching;

    /// <summary>The fault that ended the group; null while it works.</summary>
    public FaultException? First => Volatile.Read(ref _first);

    /// <summary>Ends the group; only the first call counts.</summary>
    public void Raise(FaultException fault) => Interlocked.CompareExchange(ref _first, fault, null);

    /// <summary>Ends the group with a fault that the caller then throws; nobody touches the caller's memory any more.</summary>
    public FaultException End(FaultException fault)
    {
        Raise(fault);
        AwaitNoTouch();
        return fault;
    }

    /// <summary>Throws when the group was ended.</summary>
    public void ThrowIfRaised()
    {
        if (First is { } fault)
        {
            AwaitNoTouch();
            throw new FaultException(FaultCode.PeerLost, $"Rank {fault.Rank} ended the group: {fault.Message}", fault)
            {
                Rank = fault.Rank,
            };
        }
    }

    /// <summary>Before another rank's memory is read or written. Throws when the group was ended.</summary>
    public void BeginTouch()
    {
        // The count is visible before the fault is read; whoever ends the group raises the fault before reading the count.
        Interlocked.Increment(ref _touching);
        if (First is not null)
        {
            EndTouch();
            ThrowIfRaised();
        }
    }

    /// <summary>After it.</summary>
    public void EndTouch() => Interlocked.Decrement(ref _touching);

    private void AwaitNoTouch()
    {
        var spin = default(SpinWait);
        while (Volatile.Read(ref _touching) != 0)
        {
            spin.SpinOnce();
        }
    }
}
