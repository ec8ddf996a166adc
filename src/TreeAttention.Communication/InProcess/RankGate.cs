using System;
using System.Threading;

namespace TreeAttention.Communication;

/// <summary>Where one rank waits for the others: it spins shortly, yields its core for a while, then sleeps until it is woken.</summary>
/// <remarks>Only the rank itself waits here; any rank wakes it. Nothing is allocated.</remarks>
internal sealed class RankGate
{
    private const int Yields = 400;
    private static readonly TimeSpan _look = TimeSpan.FromMilliseconds(20); // how soon a sleeper sees a fault of the group

    private readonly object _sleep = new();
    private readonly int _spins;
    private int _asleep;

    /// <summary>A gate of one of <paramref name="ranks"/> ranks. With more ranks than cores, spinning would keep the others from working.</summary>
    public RankGate(int ranks) => _spins = ranks <= Environment.ProcessorCount ? 200 : 0;

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
        for (int spin = 0; spin < _spins; spin++)
        {
            if (Volatile.Read(ref location) != value)
            {
                return;
            }

            Thread.SpinWait(8);
        }

        for (int yield = 0; yield < Yields; yield++)
        {
            if (Volatile.Read(ref location) != value)
            {
                return;
            }

            Thread.Yield();
        }

        Sleep(ref location, value, members, peer);
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
