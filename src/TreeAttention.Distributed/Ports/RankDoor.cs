using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Runtime.ExceptionServices;
using System.Threading;

namespace TreeAttention.Distributed.Ports;

/// <summary>The door of a rank: one thread is inside at a time, and what ends meanwhile is freed when that thread has left.</summary>
/// <remarks>
/// A rank's device and transport serve one thread. Every call of the public face passes here, at the cost of two interlocked operations;
/// calls that a call makes on its own thread pass freely. Whoever ends something that lives here never waits: where nobody is inside it frees
/// at once, else the one inside does it on leaving. A group and its parts have one door, for they have one device.
/// </remarks>
internal sealed class RankDoor
{
    private const int Nobody = 0;
    private const int Sweeper = -1; // frees what has ended; others wait for it, and shortly

    private readonly ConcurrentQueue<Action> _ended = new();
    private int _inside; // the managed thread's number
    private int _depth;
    private int _waiting; // entries of _ended
    private string _call = "";
    private long _changedAt = Environment.TickCount64;

    /// <summary>The calling thread is inside.</summary>
    internal bool IsMine => Volatile.Read(ref _inside) == Environment.CurrentManagedThreadId;

    /// <summary>A call is inside, of whichever thread.</summary>
    internal bool IsTaken => Volatile.Read(ref _inside) > Nobody;

    /// <summary>The call that is inside, or was last.</summary>
    internal string Call => Volatile.Read(ref _call);

    /// <summary>When somebody last went in or left, in milliseconds of the monotonic clock.</summary>
    internal long ChangedAt => Volatile.Read(ref _changedAt);

    /// <summary>Goes in, until the visit is disposed of.</summary>
    /// <param name="call">The constant name of the call, for messages.</param>
    /// <exception cref="InvalidOperationException">Another thread is inside.</exception>
    internal Visit Enter(string call)
    {
        int me = Environment.CurrentManagedThreadId;
        int holder = Interlocked.CompareExchange(ref _inside, me, Nobody);
        if (holder == me)
        {
            _depth++;
            return new Visit(this);
        }

        if (holder != Nobody)
        {
            AwaitSweeper(me, call);
        }

        Volatile.Write(ref _call, call);
        Volatile.Write(ref _changedAt, Environment.TickCount64);
        return new Visit(this);
    }

    /// <summary>Frees something now, or, where a thread is inside, when it leaves.</summary>
    internal void WhenFree(Action free)
    {
        _ended.Enqueue(free);
        Interlocked.Increment(ref _waiting);
        Sweep()?.Throw();
    }

    private void Leave()
    {
        if (_depth > 0)
        {
            _depth--;
            return;
        }

        Volatile.Write(ref _changedAt, Environment.TickCount64);

        // What ends from here on finds nobody inside; what ended before is seen below.
        Interlocked.Exchange(ref _inside, Nobody);
        if (Volatile.Read(ref _waiting) != 0)
        {
            Sweep();
        }
    }

    private void AwaitSweeper(int me, string call)
    {
        var spin = default(SpinWait);
        for (int holder; (holder = Interlocked.CompareExchange(ref _inside, me, Nobody)) != Nobody; spin.SpinOnce())
        {
            if (holder != Sweeper)
            {
                throw new InvalidOperationException(
                    $"{call} was called while another thread is in {Call} of the same rank: give each rank of a group to one thread, or let threads take turns.");
            }
        }
    }

    private ExceptionDispatchInfo? Sweep()
    {
        ExceptionDispatchInfo? first = null;
        while (Volatile.Read(ref _waiting) != 0 && Interlocked.CompareExchange(ref _inside, Sweeper, Nobody) == Nobody)
        {
            while (_ended.TryDequeue(out Action? free))
            {
                Interlocked.Decrement(ref _waiting);
                try
                {
                    free();
                }
                catch (Exception error)
                {
                    first ??= ExceptionDispatchInfo.Capture(error); // the rest is freed all the same
                }
            }

            Interlocked.Exchange(ref _inside, Nobody);
        }

        return first;
    }

    /// <summary>A call that is inside.</summary>
    internal readonly ref struct Visit(RankDoor door)
    {
        /// <summary>Leaves.</summary>
        public void Dispose() => door.Leave();
    }
}

/// <summary>The life of something that a rank made: it is used until it ends, ends once, and is freed once, when nobody is inside.</summary>
/// <param name="door">The rank's.</param>
/// <param name="name">What messages call it: its type.</param>
/// <param name="free">Frees what it holds.</param>
internal sealed class Tenancy(RankDoor door, string name, Action free)
{
    private int _hasEnded;
    private int _isFreeing;
    private bool _isFreed;
    private Tenants? _among;

    /// <summary>It was disposed of.</summary>
    internal bool HasEnded => Volatile.Read(ref _hasEnded) != 0;

    /// <summary>Throws when it was disposed of.</summary>
    /// <exception cref="ObjectDisposedException">It was.</exception>
    internal void RequireLiving()
    {
        if (HasEnded)
        {
            throw new ObjectDisposedException(name, $"This {name} was disposed of, or the group that made it was.");
        }
    }

    /// <summary>Goes through the rank's door to use it.</summary>
    /// <exception cref="ObjectDisposedException">It was disposed of.</exception>
    /// <exception cref="InvalidOperationException">Another thread is inside.</exception>
    internal RankDoor.Visit Enter(string call)
    {
        RequireLiving();
        RankDoor.Visit visit = door.Enter(call);
        if (HasEnded)
        {
            visit.Dispose();
            RequireLiving();
        }

        return visit;
    }

    /// <summary>Ends it: nobody uses it any more, and it is freed as soon as nobody is inside. Any number of times, from any thread.</summary>
    /// <returns>This call ended it.</returns>
    internal bool End()
    {
        if (Interlocked.Exchange(ref _hasEnded, 1) != 0)
        {
            return false;
        }

        door.WhenFree(Free);
        return true;
    }

    /// <summary>The same by whoever keeps everybody out.</summary>
    internal void EndInside()
    {
        Volatile.Write(ref _hasEnded, 1);
        Free();
    }

    /// <summary>Waits until it is freed; on a thread that is inside itself it is freed later, and nobody waits.</summary>
    internal void AwaitFreed()
    {
        var spin = default(SpinWait);
        while (!Volatile.Read(ref _isFreed) && !door.IsMine)
        {
            spin.SpinOnce();
        }
    }

    /// <summary>Lives among others, with which it ends at the latest.</summary>
    internal void Join(Tenants tenants) => (_among = tenants).Add(this);

    private void Free()
    {
        if (Interlocked.Exchange(ref _isFreeing, 1) != 0)
        {
            return;
        }

        try
        {
            _among?.Remove(this);
            free();
        }
        finally
        {
            Volatile.Write(ref _isFreed, true);
        }
    }
}

/// <summary>What a group made and that lives yet, in the order in which it was made.</summary>
internal sealed class Tenants
{
    private readonly Lock _gate = new();
    private readonly List<Tenancy> _living = [];

    internal void Add(Tenancy tenancy)
    {
        lock (_gate)
        {
            _living.Add(tenancy);
        }
    }

    internal void Remove(Tenancy tenancy)
    {
        lock (_gate)
        {
            _living.Remove(tenancy);
        }
    }

    /// <summary>Ends all, the latest first: steps before the caches that they were made over. Nobody else is inside.</summary>
    internal void EndAllInside()
    {
        Tenancy[] living;
        lock (_gate)
        {
            living = [.. _living];
        }

        for (int i = living.Length - 1; i >= 0; i--)
        {
            living[i].EndInside();
        }
    }
}
