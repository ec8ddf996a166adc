using System;
using TreeAttention.Communication.Control;
using Xunit;

namespace TreeAttention.Tests.Communication.Control;

public sealed class StallJudgeTests
{
    private static readonly StallLimits _limits = new()
    {
        Operation = TimeSpan.FromSeconds(10),
        WarmUp = TimeSpan.FromSeconds(100),
        WarmUpOperations = 5,
        Compute = TimeSpan.FromSeconds(1000),
    };

    [Fact]
    public void Nobody_waits_nobody_is_at_fault()
    {
        Assert.Null(Judge(Pulse(0, 50, "all-reduce", 9.9), Pulse(1, 49, null, 500), Pulse(2, 49, "compute", 900)));
    }

    [Theory]
    [InlineData(50, 11.0, true)]
    [InlineData(50, 9.9, false)]
    [InlineData(5, 99.0, false)] // the first operations may take longer
    [InlineData(5, 101.0, true)]
    public void A_rank_that_stands_still_outside_any_operation_is_at_fault(long count, double seconds, bool expected)
    {
        (int Rank, string Reason)? verdict = Judge(
            Pulse(0, count, "all-reduce", seconds), Pulse(1, count - 1, null, seconds), Pulse(2, count, "all-reduce", seconds));

        Assert.Equal(expected ? 1 : null, verdict?.Rank);
        if (expected)
        {
            Assert.Contains($"rank 1 (b07, pid 101) did not arrive at operation {count} (all-reduce)", verdict?.Reason, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void A_silent_rank_is_at_fault_before_one_that_is_only_late()
    {
        (int Rank, string Reason)? verdict = Judge(
            Pulse(0, 50, "all-reduce", 11), Pulse(1, 49, null, 11), Pulse(2, 49, "all-reduce", 1) with { Silence = TimeSpan.FromSeconds(10.5) });

        Assert.Equal(2, verdict?.Rank);
        Assert.Contains("no sign of life for 10.5 s", verdict?.Reason, StringComparison.Ordinal);
    }

    [Fact]
    public void A_rank_that_computes_has_the_larger_limit()
    {
        Assert.Null(Judge(Pulse(0, 50, "all-reduce", 700), Pulse(1, 49, "compute partial", 700)));
        Assert.Equal(1, Judge(Pulse(0, 50, "all-reduce", 1001), Pulse(1, 49, "compute partial", 1001))?.Rank);
    }

    [Fact]
    public void Who_waits_for_work_is_late_only_where_another_waits_for_it()
    {
        Assert.Null(Judge(Pulse(0, 50, null, 5000), Pulse(1, 50, "waiting for work", 5000), Pulse(2, 50, "waiting for work", 5000)));

        (int Rank, string Reason)? verdict = Judge(Pulse(0, 50, "merge", 11), Pulse(1, 49, "waiting for work", 5000), Pulse(2, 50, "merge", 11));

        Assert.Equal(1, verdict?.Rank);
        Assert.Contains("did not arrive at operation 50 (merge): it is in operation 49 (waiting for work)", verdict?.Reason, StringComparison.Ordinal);
    }

    [Fact]
    public void A_slow_rank_whose_state_changes_is_never_at_fault()
    {
        Assert.Null(Judge(Pulse(0, 50, "all-reduce", 500), Pulse(1, 49, null, 3), Pulse(2, 50, "all-reduce", 500)));
        Assert.Null(Judge(Pulse(0, 50, "ring hop", 500), Pulse(1, 49, "ring hop", 3)));
    }

    [Fact]
    public void A_long_transfer_of_all_has_the_larger_limit_but_being_at_odds_has_not()
    {
        Assert.Null(Judge(Pulse(0, 50, "ring hop", 700), Pulse(1, 90, "ring hop", 700)));
        Assert.NotNull(Judge(Pulse(0, 50, "ring hop", 1001), Pulse(1, 90, "ring hop", 1001)));

        (int Rank, string Reason)? verdict = Judge(Pulse(0, 50, "all-reduce", 12), Pulse(1, 50, "barrier", 11));
        Assert.Contains("disagree on what comes next", verdict?.Reason, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(50, 11, true, true)]
    [InlineData(2, 11, true, true)] // the first operations may take longer, but silence is silence
    [InlineData(2, 11, false, false)] // it may be waiting itself for one that has not connected
    [InlineData(2, 61, false, true)]
    public void A_rank_that_is_silent_while_others_wait_is_at_fault(long count, double seconds, bool hasBeaten, bool expected)
    {
        RankPulse silent = Pulse(1, 1, null, seconds) with { Silence = TimeSpan.FromSeconds(seconds), HasBeaten = hasBeaten };

        (int Rank, string Reason)? verdict = Judge(Pulse(0, count, "barrier", seconds), silent);

        Assert.Equal(expected ? 1 : null, verdict?.Rank);
    }

    [Fact]
    public void A_rank_that_left_while_others_wait_is_at_fault()
    {
        (int Rank, string Reason)? verdict = Judge(Pulse(0, 50, "barrier", 11), Pulse(1, 49, null, 0) with { HasLeft = true });

        Assert.Equal(1, verdict?.Rank);
    }

    private static (int Rank, string Reason)? Judge(params RankPulse[] pulses) => StallJudge.Judge(pulses, _limits);

    private static RankPulse Pulse(int rank, long count, string? operation, double standing) =>
        new(rank, $"b07, pid {100 + rank}", count, operation, TimeSpan.FromSeconds(standing), TimeSpan.FromSeconds(0.4), HasLeft: false, HasBeaten: true);
}
