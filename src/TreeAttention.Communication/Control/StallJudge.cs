using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Communication;

/// <summary>Decides from the pulses of all ranks whether the group stands still, and whose fault it is.</summary>
/// <remarks>
/// Nothing is wrong while no rank waits in a communication operation for longer than its limit. Then, in this order: a rank
/// that left or is silent is at fault. While some rank computes, within its larger limit, or changes its state, the group
/// moves. A rank that stands still outside any operation did not arrive, and is at fault. When all stand in
/// communication, in different operations, they are at odds; in the same one it may be a long transfer, which has the larger
/// limit. Numbers of operations are told, never compared: the leader of a node has more of them than the others.
/// </remarks>
internal static class StallJudge
{
    /// <summary>The rank at fault and the reason; null when all is well.</summary>
    internal static (int Rank, string Reason)? Judge(IReadOnlyList<RankPulse> pulses, StallLimits limits)
    {
        RankPulse[] waiting = [.. pulses.Where(pulse => !pulse.HasLeft && pulse.IsCommunicating && pulse.Standing >= limits.For(pulse.Count))];
        if (waiting.Length == 0)
        {
            return null;
        }

        RankPulse waiter = waiting.MaxBy(pulse => pulse.Standing);
        RankPulse[] others = [.. pulses.Where(pulse => pulse.Rank != waiter.Rank)];
        foreach (RankPulse other in others)
        {
            if (other.HasLeft)
            {
                return (other.Rank, $"{other.Name} has left, but {waiter.Name} waits {waiter.Where} for {Seconds(waiter.Standing)}");
            }

            if (other.Silence >= limits.Operation)
            {
                return (other.Rank,
                    $"{other.Name} is stopped or unreachable: no sign of life for {Seconds(other.Silence)}, last seen {other.Where} "
                    + $"while {waiter.Name} waits {waiter.Where} for {Seconds(waiter.Standing)}");
            }
        }

        return others.Any(other => other.Standing < (other.IsComputing ? limits.Compute : limits.For(waiter.Count))) ? null
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
