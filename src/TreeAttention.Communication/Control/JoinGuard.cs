using System;
using System.Diagnostics;
using System.Globalization;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Control;

/// <summary>Watches from the start of a process until its rank has met all others: nothing else does before they are connected.</summary>
/// <remarks>
/// A rank that stops or ends before or inside MPI_Init leaves the others there for ever, and no call of MPI can end them from inside. So
/// the process ends itself, with a word about where it waited; its launcher then ends the others. Time in which this process was
/// stopped itself, as by a scheduler that pauses the whole job, does not count.
/// </remarks>
internal sealed class JoinGuard : IDisposable
{
    private const int LookMilliseconds = 100;
    private const int PauseMilliseconds = 2500;

    private readonly ManualResetEventSlim _joined = new();
    private readonly LauncherEnvironment _launcher;
    private readonly TimeSpan _limit;
    private readonly Action<string> _warn;
    private readonly FaultException? _refusal;
    private readonly Thread _watch;
    private volatile string _where = "for the start of its work";

    /// <summary>Watches from now on.</summary>
    /// <param name="launcher">Names the rank.</param>
    /// <param name="limit">How long joining may take.</param>
    /// <param name="warn">Takes a sentence for the user.</param>
    /// <param name="refusal">Why this rank joins only to tell that it cannot take part: what it says and ends with when nobody comes.</param>
    internal JoinGuard(LauncherEnvironment launcher, TimeSpan limit, Action<string> warn, FaultException? refusal = null)
    {
        (_launcher, _limit, _warn, _refusal) = (launcher, limit, warn, refusal);
        _watch = new Thread(Watch) { IsBackground = true, Name = "join guard" };
        _watch.Start();
    }

    /// <summary>Says what is waited for next: <c>in MPI_Init</c>.</summary>
    internal void Enter(string where) => _where = where;

    /// <summary>The rank has met the others, or failed in its own way.</summary>
    public void Dispose()
    {
        if (_watch.IsAlive)
        {
            _joined.Set();
            _watch.Join();
            _joined.Dispose();
        }
    }

    private void Watch()
    {
        TimeSpan running = TimeSpan.Zero;
        for (long last = Stopwatch.GetTimestamp(); !_joined.Wait(LookMilliseconds);)
        {
            TimeSpan passed = Stopwatch.GetElapsedTime(last);
            last = Stopwatch.GetTimestamp();
            running += passed.TotalMilliseconds > PauseMilliseconds ? TimeSpan.Zero : passed;
            if (running >= _limit + Courtesy)
            {
                _warn(_refusal?.Message ?? Words(running));
                LibC.ExitNow((int)(_refusal?.Code ?? FaultCode.NoProgress));
            }
        }
    }

    private string Words(TimeSpan running) =>
        $"rank {_launcher.Rank?.ToString(CultureInfo.InvariantCulture) ?? "?"} of {_launcher.Size?.ToString(CultureInfo.InvariantCulture) ?? "?"} "
        + $"({ControlRendezvous.OwnPlace}) has waited {_where} for {running.TotalSeconds:0} s: another rank has not come, or is stopped. Look for ranks without "
        + $"a message; a job whose ranks start far apart needs a longer {Setting.JoinTimeout} (now {_limit.TotalSeconds.ToString("0.#", CultureInfo.InvariantCulture)} s).";

    // Rank 0 speaks at once; the others leave those before them a little time, so that the user reads it once.
    private TimeSpan Courtesy => TimeSpan.FromMilliseconds(Math.Min((_launcher.Rank ?? 0) * 200, 2000));
}
