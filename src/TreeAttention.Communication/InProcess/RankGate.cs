using System;
using System.Diagnostics;
using System.Threading;

namespace TreeAttention.Communication;

/// <summary>Where one rank waits for the others: it spins shortly, yields its core for a while, then sleeps until it is woken.</summary>
/// <remarks>Only the rank itself waits here; any rank wakes it. Nothing is allocated.</remarks>
internal sealed class RankGate
{
    private const int PollsBetweenLooks = 16; // at the clock
    private static readonly TimeSpan _look = TimeSpan.FromMilliseconds(20); // how soon a sleeper sees a fault of the group

    private readonly object _sleep = new();
    private readonly long _spinTicks;
    private readonly long _yieldTicks;
    private int _asleep;

    /// <summary>A gate of one of <paramref name="ranks"/> ranks. With more ranks than cores, spinning would keep the others from working.</summary>
    public RankGate(int ranks)
    {
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
            try
            {
                while (Volatile.Read(ref location) == value)
                {
                    // A rank may satisfy the wait and leave at once: it is lost only if the value is still the old one.
                    bool lost = members.IsLost(peer);
                    if (lost && Volatile.Read(ref location) == value)
                    {
                        members.ThrowLost(peer);
                    }

                    Monitor.Wait(_sleep, _look);
                }
            }
            finally
            {
                Volatile.Write(ref _asleep, 0);
            }
        }
    }
}
