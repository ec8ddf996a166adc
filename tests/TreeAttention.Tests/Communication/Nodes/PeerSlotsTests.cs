using System;
using System.Linq;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Numerics;
using Xunit;

namespace TreeAttention.Tests.Communication.Nodes;

public sealed class PeerSlotsTests
{
    [Theory, InlineData(1, 0), InlineData(3, 1), InlineData(5, 129)]
    public void Slots_lie_apart_on_lines_of_their_own_inside_the_memory(int ranks, long bytes)
    {
        using var memory = new HostMemory(PeerSlots.BytesFor(ranks, bytes), ElementType.Byte);
        using var slots = new PeerSlots(memory.Region.Address, 0, ranks, bytes, polite: false);

        long[] firstRound = [.. Enumerable.Range(0, ranks).Select(rank => slots.SlotOf(rank).Address - memory.Region.Address)];
        slots.NextRound();
        long[] secondRound = [.. Enumerable.Range(0, ranks).Select(rank => slots.SlotOf(rank).Address - memory.Region.Address)];

        long[] all = [.. firstRound, .. secondRound];
        Assert.All(all, offset => Assert.Equal(0, offset % 64));
        Assert.All(all, offset => Assert.InRange(offset, ranks * (long)PeerSlots.LineBytes, memory.Region.Bytes - bytes));
        Assert.All(all.Order().Zip(all.Order().Skip(1)), pair => Assert.True(pair.Second - pair.First >= bytes));
        Assert.Equal(bytes, slots.Mine.Bytes);
    }

    [Theory, InlineData(2, false), InlineData(4, true)]
    public async Task Every_rank_reads_what_the_others_wrote_in_this_very_round(int ranks, bool polite)
    {
        const int rounds = 3000;
        using var memory = new HostMemory(PeerSlots.BytesFor(ranks, 256), ElementType.Byte);
        nint address = memory.Region.Address;
        Task<int>[] tasks = [.. Enumerable.Range(0, ranks).Select(rank => Task.Factory.StartNew(
            () => CountStrays(address, rank, ranks, rounds, polite),
            TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default))];

        int[] strays = await Task.WhenAll(tasks);

        Assert.All(strays, count => Assert.Equal(0, count));
    }

    [Fact]
    public void Waiting_for_a_peer_that_never_comes_ends_when_told_so()
    {
        int freed = 0;
        using var memory = new HostMemory(PeerSlots.BytesFor(2, 8), ElementType.Byte);
        var slots = new PeerSlots(
            memory.Region.Address, 0, 2, 8, polite: true, () => throw new FaultException(FaultCode.PeerLost, "rank 1 is gone"), () => freed++);
        slots.Publish();

        Assert.Throws<FaultException>(slots.AwaitAll);
        slots.Dispose();
        slots.Dispose();

        Assert.Equal(1, freed);
    }

    private static int CountStrays(nint address, int rank, int ranks, int rounds, bool polite)
    {
        using var slots = new PeerSlots(address, rank, ranks, 256, polite);
        int strays = 0;
        for (int round = 0; round < rounds; round++)
        {
            slots.Mine.AsSpan<int>().Fill((round * 8) + rank);
            slots.Publish();
            if (round % 501 == rank)
            {
                Thread.Sleep(1);
            }

            slots.AwaitAll();
            strays += Enumerable.Range(0, ranks).Count(peer => slots.SlotOf(peer).AsSpan<int>().ContainsAnyExcept((round * 8) + peer));
            slots.NextRound();
        }

        return strays;
    }
}
