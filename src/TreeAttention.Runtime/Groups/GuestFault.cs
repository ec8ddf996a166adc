using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>What ended a group over a communicator of the caller's: waits of this rank throw it, and the caller's job goes on.</summary>
internal sealed class GuestFault
{
    private FaultException? _fault;

    /// <summary>The group was ended.</summary>
    internal bool HasEnded => Volatile.Read(ref _fault) is not null;

    /// <summary>Keeps the first fault; from any thread.</summary>
    internal void Keep(FaultCode code, string reason) => Interlocked.CompareExchange(ref _fault, new FaultException(code, reason), null);

    /// <summary>Throws when the group was ended.</summary>
    internal void ThrowIfEnded()
    {
        if (Volatile.Read(ref _fault) is { } fault)
        {
            throw new FaultException(fault.Code, $"The group has ended: {fault.Message}", fault);
        }
    }
}
