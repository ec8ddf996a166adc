using System;
using System.Threading;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Runtime.Groups;

/// <summary>Rank 0 tells the others what to do next; those who wait for it have no deadline, and learn of what ends the group.</summary>
public sealed class SharedWorkTests
{
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(1);
    private static readonly GroupOptions _options = new() { Device = DeviceKind.Cpu, Threads = 1, StallTimeout = _limit };

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public void Work_comes_in_order_to_every_rank_and_may_be_late_or_empty() => AttentionGroup.RunInProcess(3, group =>
    {
        for (byte i = 0; i < 4; i++)
        {
            byte[] given = [.. new byte[i]];
            Array.Fill(given, i);
            if (group.IsRoot && i == 2)
            {
                Thread.Sleep(3 * _limit); // there is no work for longer than a rank may be late
            }

            byte[] work = group.ShareWork(group.IsRoot ? given : [], Stop);

            Assert.Equal(given, work);
            work.AsSpan().Clear(); // the caller's own
        }
    }, _options);

    [Fact]
    public void A_rank_that_does_not_come_for_work_is_named()
    {
        using var done = new ManualResetEventSlim();
        FaultException? seen = null;

        Assert.Throws<FaultException>(() => AttentionGroup.RunInProcess(3, group =>
        {
            if (group.Rank == 2)
            {
                done.Wait(ProcessTree.Patience, TestContext.Current.CancellationToken);
                return;
            }

            try
            {
                group.ShareWork(default, Stop);
            }
            catch (FaultException fault) when (group.IsRoot)
            {
                seen = fault;
                done.Set();
                throw;
            }
        }, _options));

        Assert.Equal((FaultCode.NoProgress, 2), (seen!.Code, seen.Rank));
        Assert.Contains("did not arrive where rank 0 waits in ShareWork", seen.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Ranks_that_wait_for_work_learn_at_once_that_rank_0_left()
    {
        FaultException fault = Assert.Throws<FaultException>(() => AttentionGroup.RunInProcess(3, group =>
        {
            if (!group.IsRoot)
            {
                group.ShareWork(default, Stop);
            }
        }, _options with { StallTimeout = Timeout.InfiniteTimeSpan }));

        Assert.Equal((FaultCode.PeerLost, 0), (fault.Code, fault.Rank));
    }

    [Fact]
    public void Rank_0_alone_gives_work_of_a_bounded_size_and_only_to_a_whole_group() => AttentionGroup.RunInProcess(2, group =>
    {
        if (group.Rank == 1)
        {
            Assert.Equal("work", Assert.Throws<ArgumentException>(() => group.ShareWork([1], Stop)).ParamName);
        }
        else
        {
            Assert.Contains("16,777,216", Assert.Throws<ArgumentException>(() => group.ShareWork(new byte[(16 << 20) + 1], Stop)).Message, StringComparison.Ordinal);
        }

        using (AttentionGroup part = group.Split(group.Rank, 0))
        {
            Assert.Throws<InvalidOperationException>(() => part.ShareWork(default, Stop));
        }

        Assert.Equal([7], group.ShareWork(group.IsRoot ? [7] : [], Stop));
    }, _options);

    [Fact]
    public void A_service_that_stops_ends_the_wait_for_work()
    {
        using var stop = new CancellationTokenSource();

        Assert.Throws<OperationCanceledException>(() => AttentionGroup.RunInProcess(2, group =>
        {
            if (group.IsRoot)
            {
                Thread.Sleep(_limit / 4);
                stop.Cancel();
                stop.Token.ThrowIfCancellationRequested();
            }

            group.ShareWork(default, stop.Token);
        }, _options));
    }
}
