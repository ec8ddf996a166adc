using System;
using System.Diagnostics;
using System.Runtime.ExceptionServices;
using System.Threading;

namespace TreeAttention.Devices.Cpu.Scheduling;

/// <summary>Threads that wait for work and share its units with the caller.</summary>
/// <remarks>
/// Idle workers spin shortly, because the next step of a decode comes soon, and then park; where the pools of this process
/// have more threads than there are cores they park at once. A worker that wakes after the last unit was taken is not waited for.
/// </remarks>
internal sealed class WorkerPool : IDisposable
{
    private static readonly TimeSpan _patience = TimeSpan.FromMicroseconds(50);
    private static int _threadsOfAllPools;

    private readonly object _gate = new();
    private readonly Thread[] _workers;
    private IWork? _work;
    private int _units;
    private int _next;
    private int _active;
    private int _round;
    private bool _stopping;
    private Exception? _failure;

    /// <summary>Starts <paramref name="threads"/> - 1 workers; the caller is the other one.</summary>
    internal WorkerPool(int threads)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(threads, 1);
        Threads = threads;
        Interlocked.Add(ref _threadsOfAllPools, threads);
        _workers = new Thread[threads - 1];
        for (int i = 0; i < _workers.Length; i++)
        {
            int worker = i + 1;
            _workers[i] = new Thread(() => Serve(worker)) { IsBackground = true, Name = $"attention {worker}" };
            _workers[i].Start();
        }
    }

    /// <summary>Workers, the caller included.</summary>
    internal int Threads { get; }

    /// <summary>Does all units and returns when they are done; rethrows what a unit threw.</summary>
    internal void Run(IWork work, int units)
    {
        if (_workers.Length == 0 || units <= 1)
        {
            for (int unit = 0; unit < units; unit++)
            {
                work.Run(unit, 0);
            }

            return;
        }

        lock (_gate)
        {
            (_work, _units, _next, _failure) = (work, units, 0, null);
            Volatile.Write(ref _round, _round + 1);
            Monitor.PulseAll(_gate);
        }

        Share(work, 0);
        Finish();
        if (_failure is not null)
        {
            ExceptionDispatchInfo.Throw(_failure);
        }
    }

    public void Dispose()
    {
        lock (_gate)
        {
            _stopping = true;
            Volatile.Write(ref _round, _round + 1);
            Monitor.PulseAll(_gate);
        }

        foreach (Thread worker in _workers)
        {
            worker.Join();
        }

        Interlocked.Add(ref _threadsOfAllPools, -Threads);
    }

    private void Finish()
    {
        long start = Stopwatch.GetTimestamp();
        while (Volatile.Read(ref _active) > 0 && MaySpin(start))
        {
            Thread.SpinWait(20);
        }

        lock (_gate)
        {
            _work = null;
            while (_active > 0)
            {
                Monitor.Wait(_gate);
            }
        }
    }

    private void Serve(int worker)
    {
        for (int seen = 0; ;)
        {
            long start = Stopwatch.GetTimestamp();
            while (Volatile.Read(ref _round) == seen && MaySpin(start))
            {
                Thread.SpinWait(20);
            }

            IWork? work;
            lock (_gate)
            {
                while (_round == seen)
                {
                    Monitor.Wait(_gate);
                }

                seen = _round;
                if (_stopping)
                {
                    return;
                }

                work = _work;
                _active += work is null ? 0 : 1;
            }

            if (work is not null)
            {
                Share(work, worker);
                Leave();
            }
        }
    }

    private static bool MaySpin(long start) =>
        Volatile.Read(ref _threadsOfAllPools) <= Environment.ProcessorCount && Stopwatch.GetElapsedTime(start) < _patience;

    private void Share(IWork work, int worker)
    {
        try
        {
            for (int unit = Interlocked.Increment(ref _next) - 1; unit < _units; unit = Interlocked.Increment(ref _next) - 1)
            {
                work.Run(unit, worker);
            }
        }
#pragma warning disable CA1031 // Whatever a unit throws belongs to the caller of Run, on the caller's thread.
        catch (Exception error)
#pragma warning restore CA1031
        {
            Interlocked.CompareExchange(ref _failure, error, null);
            Volatile.Write(ref _next, _units);
        }
    }

    private void Leave()
    {
        lock (_gate)
        {
            _active--;
            if (_active == 0)
            {
                Monitor.PulseAll(_gate);
            }
        }
    }
}

/// <summary>Work in numbered units that may run in any order on any worker.</summary>
internal interface IWork
{
    /// <summary>Does one unit.</summary>
    /// <param name="unit">0 to units - 1.</param>
    /// <param name="worker">Which worker runs it, for its own scratch memory: 0 is the caller.</param>
    void Run(int unit, int worker);
}
