using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.ExceptionServices;
using System.Threading;

namespace TreeAttention.Runtime.Groups;

/// <summary>The same work on every rank of a process, each on a thread of its own; what went wrong first is what the caller gets.</summary>
internal sealed class InProcessRun(IReadOnlyList<AttentionGroup> groups, Action<AttentionGroup> body)
{
    private readonly Lock _gate = new();
    private ExceptionDispatchInfo? _error;

    /// <summary>Runs, waits for all ranks, and disposes of their groups.</summary>
    public void Run()
    {
        Thread[] threads = [.. groups.Select(group => new Thread(() => RunRank(group)) { IsBackground = true, Name = $"rank {group.Rank}" })];
        Array.ForEach(threads, thread => thread.Start());
        Array.ForEach(threads, thread => thread.Join());
        _error?.Throw();
    }

    private void RunRank(AttentionGroup group)
    {
        try
        {
            using (group)
            {
                try
                {
                    body(group);
                }
                catch (Exception error)
                {
                    Keep(error);
                    group.LeaveWith(error);
                }
            }
        }
        catch (Exception error)
        {
            Keep(error); // of leaving
        }
    }

    // That a rank was lost is the echo of what another rank met.
    private void Keep(Exception error)
    {
        lock (_gate)
        {
            if (_error is null || (IsEcho(_error.SourceException) && !IsEcho(error)))
            {
                _error = ExceptionDispatchInfo.Capture(error);
            }
        }
    }

    private static bool IsEcho(Exception error) => error is FaultException { Code: FaultCode.PeerLost };
}
