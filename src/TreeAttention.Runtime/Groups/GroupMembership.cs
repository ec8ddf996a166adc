using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Keeps ranks in a group beyond the call that formed it: the launcher runs on a thread of its own until every rank leaves.</summary>
internal sealed class GroupMembership
{
    private readonly Lock _gate = new();
    private readonly List<AttentionGroup> _arrived = [];
    private readonly TaskCompletionSource _formed = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Thread _host;
    private readonly int _ranks;
    private int _staying;

    private GroupMembership(GroupOptions options, ProcessEnvironment environment, int ranks)
    {
        _ranks = ranks;
        _staying = ranks;
        _host = new Thread(() => Host(options, environment)) { IsBackground = true, Name = "attention group" };
    }

    /// <summary>Forms the group and returns the ranks that live in this process, in order.</summary>
    /// <exception cref="FaultException">The group cannot be formed.</exception>
    internal static AttentionGroup[] Join(GroupOptions options, ProcessEnvironment environment, int ranks)
    {
        var membership = new GroupMembership(options, environment, ranks);
        membership._host.Start();
        membership._formed.Task.GetAwaiter().GetResult();
        lock (membership._gate)
        {
            AttentionGroup[] groups = [.. membership._arrived];
            Array.Sort(groups, (first, second) => first.Rank.CompareTo(second.Rank));
            return groups;
        }
    }

    /// <summary>A rank leaves; the last one of the process waits until the group is no more.</summary>
    /// <param name="seat">The rank's seat, which the host waits at.</param>
    /// <param name="fault">What only this rank met, which ends the group for the others; null for an orderly end.</param>
    private void Leave(GroupSeat seat, Exception? fault)
    {
        seat.Leave(fault);
        if (Interlocked.Decrement(ref _staying) == 0)
        {
            _host.Join();
        }
    }

    private void Host(GroupOptions options, ProcessEnvironment environment)
    {
        try
        {
            GroupLauncher.Run(options, environment, Seat);
        }
        catch (Exception error)
        {
            // Before the group is formed it is the joiner's; afterwards the ranks have told it themselves.
            _formed.TrySetException(error);
        }
    }

    private FaultCode Seat(AttentionGroup group)
    {
        using var seat = new GroupSeat();
        group.LeaveBy(fault => Leave(seat, fault));
        lock (_gate)
        {
            _arrived.Add(group);
            if (_arrived.Count == _ranks)
            {
                _formed.TrySetResult();
            }
        }

        seat.AwaitLeave();
        return FaultCode.None;
    }
}
