using System;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The first fault that a rank found or learned of; it is told once.</summary>
internal sealed class FirstFault
{
    private FaultException? _fault;
    private long _tellAt = long.MaxValue;
    private int _told;
    private volatile bool _survived;

    /// <summary>The fault; null while there is none.</summary>
    internal FaultException? Fault => Volatile.Read(ref _fault);

    /// <summary>There is a fault that was not told yet.</summary>
    internal bool IsPending => Fault != null && Volatile.Read(ref _told) == 0;

    /// <summary>Keeps the fault if it is the first.</summary>
    /// <param name="fault">What happened.</param>
    /// <param name="tellAt">When to tell it here, should whoever found it not have ended the group by then.</param>
    internal bool Keep(FaultException fault, long tellAt)
    {
        if (Interlocked.CompareExchange(ref _fault, fault, null) != null)
        {
            return false;
        }

        Volatile.Write(ref _tellAt, tellAt);
        return true;
    }

    /// <summary>Tells the fault unless that was done, or its time has not come.</summary>
    /// <returns>It was told, and the process lives on: whoever waits may be told too.</returns>
    internal bool Tell(long now, Action<FaultCode, string> onFault)
    {
        if (Fault is FaultException fault && now >= Volatile.Read(ref _tellAt) && Interlocked.Exchange(ref _told, 1) == 0)
        {
            onFault(fault.Code, fault.Message);
            _survived = true;
        }

        return _survived;
    }

    /// <summary>A new exception for whoever waits in vain; not before the fault was told, so that the user reads it once.</summary>
    internal FaultException? ToThrow() =>
        _survived && Fault is FaultException fault ? new FaultException(fault.Code, fault.Message) { Rank = fault.Rank } : null;
}
