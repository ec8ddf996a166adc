using System;
using System.Runtime.ExceptionServices;
using System.Threading;

namespace TreeAttention.Runtime;

/// <summary>Where the thread that formed a rank's part of a group waits until the rank leaves.</summary>
internal sealed class GroupSeat : IDisposable
{
    private readonly ManualResetEventSlim _left = new();
    private Exception? _fault;

    /// <summary>The rank leaves, in order or with a fault.</summary>
    internal void Leave(Exception? fault)
    {
        _fault = fault;
        _left.Set();
    }

    /// <summary>Waits for it; throws the fault, so that the others hear of it.</summary>
    internal void AwaitLeave()
    {
        _left.Wait();
        if (_fault is not null)
        {
            ExceptionDispatchInfo.Throw(_fault);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _left.Dispose();
}
