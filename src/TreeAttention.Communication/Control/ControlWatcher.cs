using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Control;

/// <summary>Judges the other ranks by their connections: rank 0 all of them, each of the others rank 0.</summary>
/// <param name="rank">This rank.</param>
/// <param name="links">Its connections.</param>
/// <param name="limits">How long ranks may wait for each other.</param>
/// <param name="clock">What this rank does itself.</param>
internal sealed class ControlWatcher(int rank, ControlLink[] links, StallLimits limits, OperationClock clock)
{
    /// <summary>What whoever knows better gets to end the group first.</summary>
    internal const int GraceMilliseconds = 1000;

    // A last operation may take a rank that much longer than one that leaves behind it.
    private static readonly TimeSpan _longFarewell = TimeSpan.FromSeconds(2);

    /// <summary>A rank that is lost (200), or one by whose fault the group stands still (201); null when all is well.</summary>
    /// <param name="now">Milliseconds of the monotonic clock.</param>
    internal FaultException? Judge(long now)
    {
        if (!limits.IsWatching)
        {
            return null;
        }

        // Rank 0 speaks at once; the others leave those before them a little time, so that the user reads it once.
        int patience = PatienceOf(rank);
        ControlLink? lost = links.FirstOrDefault(link => link.LostAt != null);
        return lost != null ? now - lost.LostAt >= patience ? Lost(lost, now) : null
            : rank == 0 ? JudgeAll(now)
            : links[0].IsOpen && now - links[0].LastHeard >= limits.Silence(links[0].HasBeaten).TotalMilliseconds + patience - GraceMilliseconds ? Silent(now)
            : null;
    }

    /// <summary>How long a rank leaves those that know better, or come before it, to end the group: milliseconds.</summary>
    internal static int PatienceOf(int rank) => GraceMilliseconds + (rank == 0 ? 0 : Math.Min(rank * 200, 1000));

    /// <summary>A rank that leaves while another waits for it in an operation (200), which rank 0 sees; null while none does.</summary>
    internal FaultException? JudgeLeaving(long now)
    {
        if (!limits.IsWatching || rank != 0)
        {
            return null;
        }

        RankPulse[] pulses = [OwnPulse(now), .. links.Select(link => link.PulseAt(now))];
        RankPulse[] lasting = [.. pulses.Where(pulse => pulse.Standing >= _longFarewell)];
        int leaver = Array.FindIndex(lasting, pulse => pulse.IsLeaving);
        int waiter = Array.FindIndex(lasting, pulse => pulse.IsCommunicating);
        return leaver < 0 || waiter < 0 ? null : new FaultException(
            FaultCode.PeerLost,
            $"{lasting[leaver].Name} left the group after operation {lasting[leaver].Count - 1:N0}, but {lasting[waiter].Name} waits "
            + $"{lasting[waiter].Where} for {StallJudge.Seconds(lasting[waiter].Standing)}: every rank must make the same calls, and leave when all are done. "
            + "Look for what that rank itself says.")
        { Rank = lasting[leaver].Rank };
    }

    private static FaultException Lost(ControlLink lost, long now) => new(
        FaultCode.PeerLost,
        $"rank {lost.Rank} ({lost.Place}) is lost: its process ended; it was {lost.PulseAt(now).Where} when last heard. "
        + "Look for its own messages, the kernel's log (out of memory) and the launcher's.")
    { Rank = lost.Rank };

    private FaultException Silent(long now)
    {
        RankPulse silent = links[0].PulseAt(now);
        RankPulse own = OwnPulse(now);
        return Stalled(0, $"{silent.Name} is stopped or unreachable: no sign of life for {StallJudge.Seconds(silent.Silence)}, last seen {silent.Where} "
            + $"while {own.Name} is {own.Where} for {StallJudge.Seconds(own.Standing)}");
    }

    private FaultException? JudgeAll(long now)
    {
        RankPulse[] pulses = [OwnPulse(now), .. links.Select(link => link.PulseAt(now))];
        return StallJudge.Judge(pulses, limits) is (int guilty, string reason) ? Stalled(guilty, reason) : null;
    }

    private RankPulse OwnPulse(long now)
    {
        (long count, string? operation, TimeSpan standing) = clock.Look(now, wasPaused: false);
        return new RankPulse(rank, ControlRendezvous.OwnPlace, count, operation, standing, TimeSpan.Zero, HasLeft: false, HasBeaten: true);
    }

    private FaultException Stalled(int guilty, string reason) => new(
        FaultCode.NoProgress,
        $"{reason}. Continue or replace that process and start again; a group that is only slow needs a longer {Setting.StallTimeout} "
        + $"(now {limits.Operation.TotalSeconds:0.#} s).")
    { Rank = guilty };
}

/// <summary>Decides from the pulses of all ranks whether the group stands still, and whose fault it is.</summary>
/// <remarks>
/// Nothing is wrong while no rank waits in a communication operation for longer than its limit. Then, in this order: a rank
/// that left or is silent is at fault, also during the first operations, whose limit is larger. While some rank computes, within its larger limit, or changes its state, the group
/// moves. A rank that stands still outside any operation did not arrive, and is at fault. When all stand in
/// communication, in different operations, they are at odds; in the same one it may be a long transfer, which has the larger
/// limit. Numbers of operations are told, never compared: the leader of a node has more of them than the others.
/// </remarks>
internal static class StallJudge
{
    /// <summary>The rank at fault and the reason; null when all is well.</summary>
    internal static (int Rank, string Reason)? Judge(IReadOnlyList<RankPulse> pulses, StallLimits limits)
    {
        RankPulse[] waiting = [.. pulses.Where(pulse => !pulse.HasLeft && pulse.IsCommunicating && pulse.Standing >= limits.Operation)];
        if (waiting.Length == 0)
        {
            return null;
        }

        // The first operations may take long, but a process that compiles or loads still gives signs of life.
        RankPulse waiter = waiting.MaxBy(pulse => pulse.Standing);
        RankPulse[] others = [.. pulses.Where(pulse => pulse.Rank != waiter.Rank)];
        foreach (RankPulse other in others)
        {
            if (other.HasLeft)
            {
                return (other.Rank, $"{other.Name} has left, but {waiter.Name} waits {waiter.Where} for {Seconds(waiter.Standing)}");
            }

            if (other.Silence >= limits.Silence(other.HasBeaten))
            {
                return (other.Rank,
                    $"{other.Name} is stopped or unreachable: no sign of life for {Seconds(other.Silence)}, last seen {other.Where} "
                    + $"while {waiter.Name} waits {waiter.Where} for {Seconds(waiter.Standing)}");
            }
        }

        return waiter.Standing < limits.For(waiter.Count) ? null
            : others.Any(other => other.Standing < (other.IsComputing ? limits.Compute : limits.For(waiter.Count))) ? null
            : others.Any(other => !other.IsCommunicating) ? JudgeMissing(others, waiter)
            : JudgeArrived(others, waiter, limits);
    }

    private static (int Rank, string Reason)? JudgeMissing(RankPulse[] others, RankPulse waiter)
    {
        RankPulse missing = others.Where(other => !other.IsCommunicating).MaxBy(other => other.Standing);
        return (missing.Rank,
            $"{missing.Name} did not arrive at operation {waiter.Count:N0} ({waiter.Operation}): it is {missing.Where} "
            + $"for {Seconds(missing.Standing)} while {waiter.Name} waits for {Seconds(waiter.Standing)}");
    }

    private static (int Rank, string Reason)? JudgeArrived(RankPulse[] others, RankPulse waiter, StallLimits limits)
    {
        RankPulse[] odd = [.. others.Where(other => other.Operation != waiter.Operation)];
        return odd.Length > 0
            ? (odd[0].Rank, $"{odd[0].Name} waits {odd[0].Where} and {waiter.Name} {waiter.Where}: the ranks disagree on what comes next")
            : waiter.Standing < limits.Compute ? null
            : (waiter.Rank, $"all ranks wait {waiter.Where} for {Seconds(waiter.Standing)}: their regions may differ in length, or the network is stuck");
    }

    internal static string Seconds(TimeSpan time) => FormattableString.Invariant($"{time.TotalSeconds:0.0} s");
}

/// <summary>How long ranks may wait for each other before the group is ended.</summary>
internal sealed record StallLimits
{
    /// <summary>Operations whose name begins so are computing: nobody's peer is waited for in them.</summary>
    public const string ComputeOperation = "compute";

    /// <summary>The operation of a rank that leaves: it waits for the others without a deadline.</summary>
    public const string LeaveOperation = "leaving the group";

    /// <summary>A rank waits so long in a communication operation for one that is silent or stands still; also the longest silence.</summary>
    public TimeSpan Operation { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>The same for the first operations: compiling, opening connections, loading.</summary>
    public TimeSpan WarmUp { get; init; } = TimeSpan.FromSeconds(120);

    /// <summary>How many operations count as the first ones.</summary>
    public int WarmUpOperations { get; init; } = 8;

    /// <summary>The same for a rank that sends heartbeats and says that it computes, and for a transfer in which all ranks take part.</summary>
    public TimeSpan Compute { get; init; } = TimeSpan.FromMinutes(10);

    /// <summary>All ranks must have come together within so long; also the longest silence before a rank's first heartbeat.</summary>
    public TimeSpan Join { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>Time between two heartbeats.</summary>
    public TimeSpan Beat { get; init; } = TimeSpan.FromMilliseconds(500);

    /// <summary>Off: nobody watches, and a group with a dead rank may hang for ever.</summary>
    public bool IsWatching { get; init; } = true;

    /// <summary>The limits by the one that users set; an infinite one watches for lost ranks alone.</summary>
    internal static StallLimits Of(TimeSpan timeout)
    {
        var never = TimeSpan.FromDays(10_000);
        return timeout == Timeout.InfiniteTimeSpan ? new StallLimits { Operation = never, WarmUp = never, Compute = never } : new StallLimits { Operation = timeout };
    }

    /// <summary>The longest silence of a rank: one that has not beaten yet may wait for others to connect.</summary>
    internal TimeSpan Silence(bool hasBeaten) => hasBeaten || Join < Operation ? Operation : Join;

    internal TimeSpan For(long operation) => operation <= WarmUpOperations ? WarmUp : Operation;
}

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

/// <summary>What is known of one rank at one moment.</summary>
/// <param name="Rank">The rank.</param>
/// <param name="Place">Its host and process, for messages.</param>
/// <param name="Count">Operations that it has entered.</param>
/// <param name="Operation">The operation that it is in; null between operations.</param>
/// <param name="Standing">How long it has been in this very state, by its own clock, while it was running.</param>
/// <param name="Silence">How long ago it was last heard.</param>
/// <param name="HasLeft">It said goodbye.</param>
/// <param name="HasBeaten">It has sent a heartbeat: it has connected to all that it waits for.</param>
internal readonly record struct RankPulse(
    int Rank, string Place, long Count, string? Operation, TimeSpan Standing, TimeSpan Silence, bool HasLeft, bool HasBeaten)
{
    internal bool IsComputing => Operation != null && Operation.StartsWith(StallLimits.ComputeOperation, StringComparison.Ordinal);

    internal bool IsLeaving => Operation == StallLimits.LeaveOperation;

    internal bool IsIdle => Operation == IControlPlane.WorkOperation;

    internal bool IsCommunicating => Operation != null && !IsComputing && !IsLeaving && !IsIdle;

    internal string Name => $"rank {Rank} ({Place})";

    internal string Where => Operation != null ? $"in operation {Count:N0} ({Operation})" : $"outside any operation, after operation {Count:N0},";
}
