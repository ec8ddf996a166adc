using System;
using System.Threading;

namespace TreeAttention.Communication;

/// <summary>Which operation this rank is in, told by the thread that works and read by the one that watches.</summary>
/// <remarks>
/// Telling costs two stores. Time is kept by the watcher alone, from look to look: a process that was stopped and
/// continued together with its peers does not count the pause.
/// </remarks>
internal sealed class OperationClock
{
    private long _count;
    private string? _operation;
    private long _seenCount = -1;
    private string? _seenOperation;
    private long _since;

    internal void Enter(string operation)
    {
        Volatile.Write(ref _operation, operation);
        Volatile.Write(ref _count, _count + 1);
    }

    internal void Leave() => Volatile.Write(ref _operation, null);

    /// <summary>Looks at the state; only the watcher does.</summary>
    /// <param name="now">Milliseconds of the monotonic clock.</param>
    /// <param name="wasPaused">The time since the last look does not count.</param>
    internal (long Count, string? Operation, TimeSpan Standing) Look(long now, bool wasPaused)
    {
        long count = Volatile.Read(ref _count);
        string? operation = Volatile.Read(ref _operation);
        if (wasPaused || count != _seenCount || !ReferenceEquals(operation, _seenOperation))
        {
            (_seenCount, _seenOperation, _since) = (count, operation, now);
        }

        return (count, operation, TimeSpan.FromMilliseconds(now - _since));
    }
}
