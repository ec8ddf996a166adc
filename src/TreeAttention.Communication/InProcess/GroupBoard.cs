using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Reductions;

namespace TreeAttention.Communication.InProcess;

/// <summary>What the ranks of an in-process group share: where they wait, meet, and show each other regions.</summary>
internal sealed class GroupBoard
{
    private readonly RankBarrier _barrier;
    private readonly RankChannel[] _channels;

    /// <param name="nodes">[size] the node of each rank.</param>
    /// <param name="fault">The fault of the whole group.</param>
    /// <param name="seats">[size] the ranks, as those of the whole group.</param>
    /// <param name="limits">How long they wait for each other.</param>
    public GroupBoard(IReadOnlyList<int> nodes, GroupFault fault, RankSeat[] seats, StallLimits limits)
    {
        Nodes = nodes;
        Size = nodes.Count;
        Limits = limits;
        Members = new GroupMembers(seats, fault);
        Gates = new RankGate[Size];
        Shown = new Region[Size];
        PartBytes = new long[Size * Size];
        Splits = new SplitChoice[Size];
        Groups = new GroupBoard[Size];
        Peers = new PeerBoard[Size];
        Steps = FoldTree.StepsFor(Size);
        _barrier = new RankBarrier(Size);
        _channels = new RankChannel[Size * Size];
        for (int from = 0; from < Size; from++)
        {
            Gates[from] = new RankGate(Size, from, NewWatch(from));
            for (int to = 0; to < Size; to++)
            {
                _channels[(from * Size) + to] = new RankChannel(from, to);
            }
        }
    }

    /// <summary>What a rank gives to a split.</summary>
    public readonly record struct SplitChoice(int Color, int Key);

    public int Size { get; }

    public IReadOnlyList<int> Nodes { get; }

    public GroupMembers Members { get; }

    /// <summary>How long ranks wait for each other.</summary>
    public StallLimits Limits { get; }

    public RankGate[] Gates { get; }

    /// <summary>The canonical fold of as many states as there are ranks.</summary>
    public FoldStep[] Steps { get; }

    /// <summary>[size] what each rank shows in the collective under way.</summary>
    public Region[] Shown { get; }

    /// <summary>[size, size] bytes of the part that a rank sends to another.</summary>
    public long[] PartBytes { get; }

    /// <summary>[size] what each rank gave to the split under way.</summary>
    public SplitChoice[] Splits { get; }

    /// <summary>[size] the group that a rank founded for its color.</summary>
    public GroupBoard[] Groups { get; }

    /// <summary>[size] the peer memory that rank 0 founded.</summary>
    public PeerBoard[] Peers { get; }

    /// <summary>What a rank sees of the others while it waits.</summary>
    public WaitWatch NewWatch(int rank) => new(Members.Seats, rank, Limits);

    public RankChannel Channel(int from, int to) => _channels[(from * Size) + to];

    /// <summary>Returns when all ranks are here; what each wrote before is what all read after.</summary>
    public void Meet(int rank) => _barrier.Meet(rank, Gates, Members);
}

/// <summary>A meeting of all ranks of a group; what each wrote before is what all read after.</summary>
internal sealed class RankBarrier(int ranks)
{
    private int _arrived;
    private int _meeting;

    /// <summary>Returns when every rank has called it.</summary>
    public void Meet(int rank, RankGate[] gates, GroupMembers members)
    {
        int meeting = Volatile.Read(ref _meeting);
        if (Interlocked.Increment(ref _arrived) == ranks)
        {
            _arrived = 0;
            Interlocked.Increment(ref _meeting);
            for (int other = 0; other < ranks; other++)
            {
                gates[other].Wake();
            }
        }
        else
        {
            gates[rank].WaitWhileEqual(ref _meeting, meeting, members, GroupMembers.Any);
        }
    }
}

/// <summary>Messages from one rank to another: the sender shows its region, the receiver copies from it. One message at a time.</summary>
internal sealed class RankChannel(int from, int to)
{
    private Region _shown;
    private int _posted;
    private int _taken;

    /// <summary>Shows a region to the receiver; it stays the sender's until <see cref="AwaitTaken"/> returns.</summary>
    public void Post(Region region, RankGate[] gates)
    {
        _shown = region;
        Interlocked.Increment(ref _posted);
        gates[to].Wake();
    }

    /// <summary>Waits until the receiver has copied what was posted.</summary>
    public void AwaitTaken(RankGate[] gates, GroupMembers members) =>
        gates[from].WaitWhileEqual(ref _taken, _posted - 1, members, to);

    /// <summary>Waits for a message and copies it.</summary>
    /// <exception cref="FaultException">The lengths differ (78), or the sender is lost (200).</exception>
    public void Take(Region into, RankGate[] gates, GroupMembers members)
    {
        gates[to].WaitWhileEqual(ref _posted, _taken, members, from);
        if (_shown.Bytes != into.Bytes)
        {
            throw members.Fault.End(new FaultException(
                FaultCode.RanksDisagree,
                $"Rank {from} sent {_shown.Bytes:N0} bytes to rank {to}, which expected {into.Bytes:N0}: both must come from the same "
                + "shapes. Start every rank with the same arguments.")
            {
                Rank = to,
            });
        }

        members.Fault.BeginTouch();
        HostRegions.Copy(_shown, into);
        members.Fault.EndTouch();
        Interlocked.Increment(ref _taken);
        gates[from].Wake();
    }
}

/// <summary>Where one rank waits for the others: it spins shortly, yields its core for a while, then sleeps until it is woken.</summary>
/// <remarks>Only the rank itself waits here; any rank wakes it. Nothing is allocated.</remarks>
internal sealed class RankGate
{
    private const int PollsBetweenLooks = 16; // at the clock
    private static readonly TimeSpan _look = TimeSpan.FromMilliseconds(20); // how soon a sleeper sees a fault of the group

    private readonly object _sleep = new();
    private readonly long _spinTicks;
    private readonly long _yieldTicks;
    private readonly int _rank;
    private readonly WaitWatch _watch;
    private int _asleep;

    /// <summary>A gate of one of <paramref name="ranks"/> ranks. With more ranks than cores, spinning would keep the others from working.</summary>
    public RankGate(int ranks, int rank, WaitWatch watch)
    {
        (_rank, _watch) = (rank, watch);

        // With a core for every rank, a core that is yielded goes to a stranger for a whole time slice. Waking a sleeper on an
        // idle core takes up to 0.1 ms: with a patience of that order two ranks would put each other to sleep at every step.
        bool roomy = ranks <= Environment.ProcessorCount;
        _spinTicks = roomy ? Stopwatch.Frequency / 1000 : 0;
        _yieldTicks = Stopwatch.Frequency / (roomy ? 500 : 2000);
    }

    /// <summary>Wakes the rank if it sleeps; what was written before is what it then reads.</summary>
    public void Wake()
    {
        // The waiter stores _asleep, then reads the awaited value; here the value was stored, then _asleep is read.
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref _asleep) != 0)
        {
            lock (_sleep)
            {
                Monitor.Pulse(_sleep);
            }
        }
    }

    /// <summary>Waits while <paramref name="location"/> holds <paramref name="value"/>.</summary>
    /// <param name="location">What another rank will change; it calls <see cref="Wake"/> then.</param>
    /// <param name="value">The value of now.</param>
    /// <param name="members">Who may be lost meanwhile.</param>
    /// <param name="peer">The rank that is waited for, or <see cref="GroupMembers.Any"/>.</param>
    public void WaitWhileEqual(ref int location, int value, GroupMembers members, int peer)
    {
        if (Volatile.Read(ref location) == value
            && !Poll(ref location, value, _spinTicks, yields: false)
            && !Poll(ref location, value, _yieldTicks, yields: true))
        {
            Sleep(ref location, value, members, peer);
        }
    }

    // True as soon as the value is another one.
    private static bool Poll(ref int location, int value, long ticks, bool yields)
    {
        for (long start = Stopwatch.GetTimestamp(); ticks > 0 && Stopwatch.GetTimestamp() - start < ticks;)
        {
            for (int poll = 0; poll < PollsBetweenLooks; poll++)
            {
                if (Volatile.Read(ref location) != value)
                {
                    return true;
                }

                if (yields)
                {
                    Thread.Yield();
                }
                else
                {
                    Thread.SpinWait(1);
                }
            }
        }

        return false;
    }

    private void Sleep(ref int location, int value, GroupMembers members, int peer)
    {
        lock (_sleep)
        {
            Interlocked.Exchange(ref _asleep, 1);
            _watch.Begin();
            try
            {
                while (Volatile.Read(ref location) == value)
                {
                    // A rank may satisfy the wait and leave at once: it is lost only if the value is still the old one.
                    bool lost = members.IsLost(peer);
                    if (lost && Volatile.Read(ref location) == value)
                    {
                        members.ThrowLost(_rank, peer);
                    }

                    if (!Monitor.Wait(_sleep, _look) && _watch.Look() is { } late && Volatile.Read(ref location) == value)
                    {
                        throw members.Fault.End(late);
                    }
                }
            }
            finally
            {
                _watch.End();
                Volatile.Write(ref _asleep, 0);
            }
        }
    }
}
