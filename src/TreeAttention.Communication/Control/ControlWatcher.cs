using System;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Judges the other ranks by their connections: rank 0 all of them, each of the others rank 0.</summary>
/// <param name="rank">This rank.</param>
/// <param name="links">Its connections.</param>
/// <param name="limits">How long ranks may wait for each other.</param>
/// <param name="clock">What this rank does itself.</param>
internal sealed class ControlWatcher(int rank, ControlLink[] links, StallLimits limits, OperationClock clock)
{
    /// <summary>What whoever knows better gets to end the group first.</summary>
    internal const int GraceMilliseconds = 1000;

    /// <summary>A rank that is lost (200), or one by whose fault the group stands still (201); null when all is well.</summary>
    /// <param name="now">Milliseconds of the monotonic clock.</param>
    internal FaultException? Judge(long now)
    {
        if (!limits.IsWatching)
        {
            return null;
        }

        // Rank 0 speaks at once; the others leave those before them a little time, so that the user reads it once.
        int patience = GraceMilliseconds + (rank == 0 ? 0 : Math.Min(rank * 200, 1000));
        ControlLink? lost = links.FirstOrDefault(link => link.LostAt != null);
        return lost != null ? now - lost.LostAt >= patience ? Lost(lost, now) : null
            : rank == 0 ? JudgeAll(now)
            : links[0].IsOpen && now - links[0].LastHeard >= limits.Operation.TotalMilliseconds + patience - GraceMilliseconds ? Silent(now)
            : null;
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
        return new RankPulse(rank, ControlRendezvous.OwnPlace, count, operation, standing, TimeSpan.Zero, HasLeft: false);
    }

    private FaultException Stalled(int guilty, string reason) => new(
        FaultCode.NoProgress,
        $"{reason}. Continue or replace that process and start again; a group that is only slow needs a longer --stall-timeout "
        + $"(now {limits.Operation.TotalSeconds:0.#} s).")
    { Rank = guilty };
}
