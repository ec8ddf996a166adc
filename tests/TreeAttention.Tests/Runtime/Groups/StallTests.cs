using System;
using System.Collections.Generic;
using System.Threading;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>In-process ranks are watched as processes are: a rank that does not arrive is a fault that names it, and an idle group is none.</summary>
public sealed class StallTests
{
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(1);
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1, StallTimeout = _limit };
    private static readonly DecodeCase _decode = new("stalls") { Options = new AttentionOptions { Causal = true } };

    [Fact]
    public void Ranks_on_one_thread_are_told_that_each_needs_its_own()
    {
        IReadOnlyList<AttentionGroup> ranks = AttentionGroup.JoinInProcess(3, _options);

        FaultException fault = Assert.Throws<FaultException>(() =>
        {
            foreach (AttentionGroup group in ranks)
            {
                group.CreateCache(_decode.CacheOptions);
            }
        });

        Assert.Equal(FaultCode.NoProgress, fault.Code);
        Assert.Contains("ranks 1, 2 did not arrive where rank 0 waits in CreateCache", fault.Message, StringComparison.Ordinal);
        Assert.Contains(nameof(AttentionGroup.RunInProcess), fault.Message, StringComparison.Ordinal);
        Assert.Equal(FaultCode.NoProgress, Assert.Throws<FaultException>(() => ranks[1].CreateCache(_decode.CacheOptions)).Code);
        Assert.All(ranks, group => group.Dispose());
    }

    [Theory, InlineData(ReductionKind.OneShot), InlineData(ReductionKind.Butterfly), InlineData(ReductionKind.ThreeAllReduce), InlineData(ReductionKind.Lanes)]
    public void A_rank_that_stays_away_from_a_step_is_named_on_all(ReductionKind reduction)
    {
        var seen = new Exception?[3];
        using var done = new CountdownEvent(2);

        Assert.Throws<FaultException>(() => AttentionGroup.RunInProcess(3, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions(reduction));
            if (group.Rank == 1)
            {
                done.Wait(ProcessTree.Patience, TestContext.Current.CancellationToken);
                return;
            }

            seen[group.Rank] = Record.Exception(() => Decode(group, step));
            done.Signal();
            throw seen[group.Rank]!;
        }, _options));

        Assert.All((int[])[0, 2], rank =>
        {
            FaultException fault = Assert.IsType<FaultException>(seen[rank]);
            Assert.Equal((FaultCode.NoProgress, 1), (fault.Code, fault.Rank));
            Assert.Contains("rank 1 did not arrive", fault.Message, StringComparison.Ordinal);
            Assert.Contains(nameof(AttentionGroup.Decode), fault.Message, StringComparison.Ordinal);
        });
    }

    [Fact]
    public void Idle_ranks_and_one_that_computes_are_no_stall() => AttentionGroup.RunInProcess(2, group =>
    {
        using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
        using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
        Thread.Sleep(3 * _limit); // both are idle

        group.Together(() => Thread.Sleep(group.Rank * 3 * _limit)); // one computes, in a call, and the other waits

        Decode(group, step);
        Assert.Equal(1, cache.LengthOf(0));
    }, _options with { StallTimeout = 2 * _limit });

    [Fact]
    public void Ranks_that_wait_for_different_things_are_told_so()
    {
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.RunInProcess(2, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions(ReductionKind.ThreeAllReduce));
            if (group.Rank == 0)
            {
                Decode(group, step);
            }
            else
            {
                group.CreateCache(_decode.CacheOptions);
            }
        }, _options));

        Assert.Equal(FaultCode.NoProgress, fault.Code);
        Assert.Contains("rank 0 in Decode", fault.Message, StringComparison.Ordinal);
        Assert.Contains("rank 1 in CreateCache", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_rank_that_leaves_is_lost_at_once_with_what_it_is_waited_for_in()
    {
        var seen = new Exception?[3];

        // The limit is never reached: this is known at once.
        NotSupportedException error = Assert.Throws<NotSupportedException>(() => AttentionGroup.RunInProcess(3, group =>
        {
            using ShardedKvCache cache = group.CreateCache(_decode.CacheOptions);
            using DecodeStep step = group.CreateStep(cache, _decode.DecodeOptions());
            if (group.Rank == 2)
            {
                throw new NotSupportedException("the caller's own");
            }

            seen[group.Rank] = Record.Exception(() => Decode(group, step));
            throw seen[group.Rank]!;
        }, _options with { StallTimeout = Timeout.InfiniteTimeSpan }));

        Assert.Equal("the caller's own", error.Message);
        Assert.All((int[])[0, 1], rank =>
        {
            FaultException fault = Assert.IsType<FaultException>(seen[rank]);
            Assert.Equal((FaultCode.PeerLost, 2), (fault.Code, fault.Rank));
            Assert.Contains("the caller's own", fault.Message, StringComparison.Ordinal);
        });
    }

    [Fact]
    public void A_rank_that_returns_early_is_lost_too()
    {
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.RunInProcess(2, group =>
        {
            if (group.Rank == 0)
            {
                group.CreateCache(_decode.CacheOptions);
            }
        }, _options with { StallTimeout = Timeout.InfiniteTimeSpan }));

        Assert.Equal((FaultCode.PeerLost, 1), (fault.Code, fault.Rank));
        Assert.Contains("rank 0 waits for it in CreateCache", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Results_of_all_ranks_come_in_their_order() =>
        Assert.Equal([0, 10, 20], AttentionGroup.RunInProcess(3, group => 10 * group.Rank, _options));

    [Theory, InlineData(0), InlineData(-5)]
    public void A_limit_that_is_none_is_refused(int seconds) =>
        Assert.Throws<ArgumentOutOfRangeException>(() => AttentionGroup.Join(_options with { StallTimeout = TimeSpan.FromSeconds(seconds) }));

    private static void Decode(AttentionGroup group, DecodeStep step)
    {
        (float[] key, float[] value) = _decode.LastTokens();
        group.Decode(
            step, 0, _decode.Query, key, value, new float[_decode.Rows * _decode.QueryHeads * _decode.ValueDim],
            new float[_decode.Rows * _decode.QueryHeads], TestContext.Current.CancellationToken);
    }
}
