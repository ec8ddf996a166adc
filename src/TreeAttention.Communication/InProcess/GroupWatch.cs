using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.InProcess;

/// <summary>What everybody sees of an in-process rank: its door, its operation, and whether it waits for others.</summary>
/// <param name="rank">Its number in the whole group.</param>
internal sealed class RankSeat(int rank)
{
    private string _operation = "";
    private long _changes;
    private int _waits;

    /// <summary>The rank's number in the whole group.</summary>
    public int Rank => rank;

    /// <summary>Through which its calls pass.</summary>
    public RankDoor Door { get; } = new();

    /// <summary>The operation entered last; empty between operations.</summary>
    public string Operation => Volatile.Read(ref _operation);

    /// <summary>It has gone to sleep until another rank wakes it.</summary>
    public bool IsWaiting => Volatile.Read(ref _waits) != 0;

    /// <summary>It waits for work, which may never come.</summary>
    public bool IsIdle => Operation == IControlPlane.WorkOperation;

    /// <summary>It is in a call and waits for nobody, or says that it computes.</summary>
    public bool IsComputing => !IsWaiting && (Door.IsTaken || Operation.StartsWith(StallLimits.ComputeOperation, StringComparison.Ordinal));

    /// <summary>Another number whenever the rank has come further.</summary>
    public long Progress => Volatile.Read(ref _changes) + Door.ChangedAt;

    /// <summary>What the rank does: the call, and the operation in it.</summary>
    public string Where
    {
        get
        {
            string operation = Operation;
            return !Door.IsTaken ? (operation.Length > 0 ? operation : "outside any call")
                : operation.Length > 0 ? $"in {Door.Call} ({operation})" : $"in {Door.Call}";
        }
    }

    public void Enter(string operation)
    {
        Volatile.Write(ref _operation, operation);
        Volatile.Write(ref _changes, _changes + 1);
    }

    public void Leave() => Enter("");

    public void BeginWait() => Volatile.Write(ref _waits, 1);

    public void EndWait() => Volatile.Write(ref _waits, 0);
}

/// <summary>What a waiting rank sees of the others, by the rules by which processes are watched: nothing is wrong while no collective is late.</summary>
/// <remarks>
/// The waiter itself looks, so an idle group has no watcher. Time is counted from look to look, and a process that was stopped does not count the
/// pause. A rank is late that stands still for the limit while it is outside any call, or for the longer one while it computes.
/// </remarks>
/// <param name="seats">[ranks] those that share what is waited at.</param>
/// <param name="rank">The waiter.</param>
/// <param name="limits">How long.</param>
internal sealed class WaitWatch(RankSeat[] seats, int rank, StallLimits limits)
{
    private const long LongestLook = 1000; // milliseconds

    private readonly long[] _progress = new long[seats.Length];
    private readonly long[] _still = new long[seats.Length]; // milliseconds
    private long _last;
    private long _waited;

    /// <summary>A wait begins.</summary>
    public void Begin()
    {
        (_last, _waited) = (Environment.TickCount64, 0);
        for (int other = 0; other < seats.Length; other++)
        {
            (_progress[other], _still[other]) = (seats[other].Progress, 0);
        }

        seats[rank].BeginWait();
    }

    /// <summary>It is over.</summary>
    public void End() => seats[rank].EndWait();

    /// <summary>The fault of whoever is late; null while nobody is.</summary>
    public FaultException? Look()
    {
        long now = Environment.TickCount64;
        long passed = Math.Min(now - _last, LongestLook);
        _last = now;
        _waited += passed;
        for (int other = 0; other < seats.Length; other++)
        {
            long progress = seats[other].Progress;
            _still[other] = progress == _progress[other] ? _still[other] + passed : 0;
            _progress[other] = progress;
        }

        return limits.IsWatching && !seats[rank].IsIdle && _waited >= limits.Operation.TotalMilliseconds ? Judge() : null;
    }

    private FaultException? Judge()
    {
        var late = new List<int>();
        for (int other = 0; other < seats.Length; other++)
        {
            if (other == rank)
            {
                continue;
            }

            if (_still[other] < (seats[other].IsComputing ? limits.Compute : limits.Operation).TotalMilliseconds)
            {
                return null;
            }

            if (!seats[other].IsWaiting)
            {
                late.Add(other);
            }
        }

        return late.Count == 0 ? AtOdds() : Late(late);
    }

    private FaultException Late(List<int> late)
    {
        RankSeat waiter = seats[rank];
        string who = late.Count == 1 ? $"rank {seats[late[0]].Rank}" : $"ranks {string.Join(", ", late.Select(one => seats[one].Rank))}";
        string where = string.Join(", ", late.Select(one => seats[one].Where).Distinct());
        double seconds = late.Min(one => _still[one]) / 1000.0;
        return new FaultException(
            FaultCode.NoProgress,
            $"{who} did not arrive where rank {waiter.Rank} waits {waiter.Where}: {where} for {StallJudge.Seconds(TimeSpan.FromSeconds(seconds))}. Every rank "
            + $"needs a thread of its own, which AttentionGroup.RunInProcess gives it; ranks that are only slow need a longer {Setting.StallTimeout} (now "
            + $"{limits.Operation.TotalSeconds:0.#} s).")
        { Rank = seats[late[0]].Rank };
    }

    private FaultException AtOdds() => new(
        FaultCode.NoProgress,
        $"All ranks wait for each other: {string.Join(", ", seats.Select(seat => $"rank {seat.Rank} {seat.Where}"))}. Every rank must make the same calls in the "
        + "same order.")
    { Rank = seats[rank].Rank };
}
