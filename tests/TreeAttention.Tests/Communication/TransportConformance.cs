using System;
using System.Linq;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Communication;

/// <summary>What every transport does alike. A subclass says how ranks are started.</summary>
public abstract class TransportConformance
{
    public static TheoryData<int> RankCounts => [1, 2, 3, 5, 8];

    // One element, both sides of a vector, of a cache line's worth and of a block, and a length no rank count divides.
    private static readonly int[] _lengths = [1, 7, 8, 63, 64, 65, 1023, 1025, 5003];

    private protected abstract void RunOnEachRank(int ranks, Action<ITransport> body);

    [Theory, MemberData(nameof(RankCounts))]
    public void All_reduce_sum_gives_every_rank_the_total(int ranks) => RunOnEachRank(ranks, transport =>
    {
        foreach (int length in _lengths)
        {
            using var values = new HostFloats(length);
            for (int i = 0; i < length; i++)
            {
                values.Values[i] = (transport.Rank + 1) * (i % 11);
            }

            transport.AllReduce(values.Region, ReduceOperation.Sum);

            for (int i = 0; i < length; i++)
            {
                Assert.Equal(i % 11 * ranks * (ranks + 1) / 2f, values.Values[i]); // small integers: exact in fp32
            }
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void All_reduce_max_gives_every_rank_the_largest(int ranks) => RunOnEachRank(ranks, transport =>
    {
        foreach (int length in _lengths)
        {
            using var values = new HostFloats(length);
            for (int i = 0; i < length; i++)
            {
                values.Values[i] = i % ranks == transport.Rank ? i : float.NegativeInfinity;
            }

            transport.AllReduce(values.Region, ReduceOperation.Max);

            Assert.Equal(Enumerable.Range(0, length).Select(i => (float)i), values.Values.ToArray());
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void All_reduce_gives_every_rank_the_same_bits(int ranks) => RunOnEachRank(ranks, transport =>
    {
        const int Length = 777;
        using var values = new HostFloats(Length);
        using var all = new HostFloats(Length * ranks);
        for (int run = 0; run < 20; run++)
        {
            var random = new Random((run * 100) + transport.Rank);
            for (int i = 0; i < Length; i++)
            {
                values.Values[i] = (float)Math.Exp(20 * random.NextDouble());
            }

            transport.AllReduce(values.Region, ReduceOperation.Sum);
            transport.AllGather(values.Region, all.Region);

            for (int rank = 0; rank < ranks; rank++)
            {
                Assert.True(values.Values.SequenceEqual(all.Values.Slice(rank * Length, Length)));
            }
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void All_reduce_of_states_is_the_merge_of_all(int ranks) => RunOnEachRank(ranks, transport =>
    {
        if (!transport.CanReduceStates)
        {
            return;
        }

        foreach ((int rows, int valueDim) in new[] { (1, 1), (3, 5), (9, 128), (40, 576) })
        {
            using var memory = new HostFloats((int)PartialAttention.FloatsFor(rows, valueDim));
            var state = new PartialAttention(memory.Region, rows, valueDim);
            RandomState.Fill(state, transport.Rank);

            transport.AllReduceStates(state);

            var expected = PlainFold.OfRandomStates(ranks, rows, valueDim);
            expected.AssertClose(state);
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void All_gather_is_in_rank_order(int ranks) => RunOnEachRank(ranks, transport =>
    {
        foreach (int length in _lengths)
        {
            using var mine = HostFloats.Filled(length, transport.Rank + 1);
            using var all = new HostFloats(length * ranks);

            transport.AllGather(mine.Region, all.Region);

            Assert.Equal(Enumerable.Range(0, length * ranks).Select(i => (float)(i / length) + 1), all.Values.ToArray());
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void All_to_all_moves_parts_of_any_length(int ranks) => RunOnEachRank(ranks, transport =>
    {
        // Rank r sends r + 2·i - 1 elements to rank i, none where that is negative.
        int Length(int from, int to) => Math.Max(0, from + (2 * to) - 1);
        int[] sent = [.. Enumerable.Range(0, ranks).Select(to => Length(transport.Rank, to))];
        int[] received = [.. Enumerable.Range(0, ranks).Select(from => Length(from, transport.Rank))];
        using var outgoing = new HostFloats([.. sent.SelectMany((count, to) => Enumerable.Repeat((100f * transport.Rank) + to, count))]);
        using var incoming = new HostFloats(received.Sum());

        transport.AllToAll(
            outgoing.Region, [.. sent.Select(count => count * 4L)], incoming.Region, [.. received.Select(count => count * 4L)]);

        Assert.Equal(
            received.SelectMany((count, from) => Enumerable.Repeat((100f * from) + transport.Rank, count)), incoming.Values.ToArray());
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Broadcast_copies_the_root(int ranks) => RunOnEachRank(ranks, transport =>
    {
        for (int root = 0; root < ranks; root++)
        {
            using var values = HostFloats.Filled(100, transport.Rank);

            transport.Broadcast(values.Region, root);

            Assert.All(values.Values.ToArray(), value => Assert.Equal(root, value));
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Messages_of_a_pair_arrive_in_order(int ranks) => RunOnEachRank(ranks, transport =>
    {
        if (transport.Rank == 0)
        {
            for (int i = 0; i < 20; i++)
            {
                for (int to = 1; to < ranks; to++)
                {
                    using var message = HostFloats.Filled(i + 1, (i * 10) + to);
                    transport.Send(message.Region, to);
                }
            }
        }
        else
        {
            for (int i = 0; i < 20; i++)
            {
                using var message = new HostFloats(i + 1);
                transport.Receive(message.Region, 0);
                Assert.All(message.Values.ToArray(), value => Assert.Equal((i * 10) + transport.Rank, value));
            }
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Exchanges_at_every_distance_end(int ranks) => RunOnEachRank(ranks, transport =>
    {
        for (int distance = 0; distance < ranks; distance++)
        {
            int to = (transport.Rank + distance) % ranks;
            int from = (transport.Rank - distance + ranks) % ranks;
            using var outgoing = HostFloats.Filled(3000, transport.Rank);
            using var incoming = new HostFloats(3000);

            transport.Exchange(outgoing.Region, to, incoming.Region, from);

            Assert.All(incoming.Values.ToArray(), value => Assert.Equal(from, value));
        }
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void An_exchange_of_unequal_and_empty_regions_ends(int ranks) => RunOnEachRank(ranks, transport =>
    {
        // Rank r sends r elements: rank 0 sends nothing.
        int previous = (transport.Rank + ranks - 1) % ranks;
        using var outgoing = HostFloats.Filled(transport.Rank, transport.Rank);
        using var incoming = HostFloats.Filled(previous, -1);

        transport.StartExchange(outgoing.Region, (transport.Rank + 1) % ranks, incoming.Region, previous);
        transport.Complete();

        Assert.All(incoming.Values.ToArray(), value => Assert.Equal(previous, value));
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void A_split_is_a_transport_of_its_own(int ranks) => RunOnEachRank(ranks, transport =>
    {
        int color = transport.Rank % 2;
        using ITransport half = transport.Split(color, -transport.Rank); // the highest rank comes first

        int[] members = [.. Enumerable.Range(0, ranks).Where(rank => rank % 2 == color).Reverse()];
        Assert.Equal(members.Length, half.Size);
        Assert.Equal(transport.Rank, members[half.Rank]);

        using var mine = HostFloats.Filled(1, transport.Rank);
        using var all = new HostFloats(half.Size);
        transport.Traffic.Reset();
        half.AllGather(mine.Region, all.Region);

        Assert.Equal(members.Select(rank => (float)rank), all.Values.ToArray());
        Assert.Equal((4, 1), (transport.Traffic.BytesSent, transport.Traffic.Collectives));
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Traffic_counts_messages_and_contributions(int ranks) => RunOnEachRank(ranks, transport =>
    {
        using var mine = new HostFloats(10);
        using var other = new HostFloats(10);
        using var all = new HostFloats(10 * ranks);
        transport.Traffic.Reset();

        transport.Exchange(mine.Region, (transport.Rank + 1) % ranks, other.Region, (transport.Rank + ranks - 1) % ranks);
        transport.AllReduce(mine.Region, ReduceOperation.Sum);
        transport.AllGather(mine.Region, all.Region);

        Assert.Equal((120, 1, 2), (transport.Traffic.BytesSent, transport.Traffic.Messages, transport.Traffic.Collectives));
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Peer_memory_shows_every_rank_all_slots_of_the_round(int ranks) => RunOnEachRank(ranks, transport =>
    {
        using IPeerMemory? peers = transport.SharePeerMemory(sizeof(float) * 33);
        Assert.NotNull(peers);
        for (int round = 0; round < 200; round++)
        {
            peers.Mine.AsSpan<float>().Fill((round * 100) + transport.Rank);
            peers.Publish();
            peers.AwaitAll();
            for (int rank = 0; rank < ranks; rank++)
            {
                float expected = (round * 100) + rank;
                Assert.Equal(-1, peers.SlotOf(rank).AsSpan<float>().IndexOfAnyExcept(expected));
            }

            peers.NextRound();
        }

        transport.Barrier();
    });

    [Theory, MemberData(nameof(RankCounts))]
    public void Operations_allocate_nothing(int ranks) => RunOnEachRank(ranks, transport =>
    {
        using var mine = new HostFloats(500);
        using var other = new HostFloats(500);
        using var all = new HostFloats(500 * ranks);
        void Operate()
        {
            transport.AllReduce(mine.Region, ReduceOperation.Sum);
            transport.AllGather(mine.Region, all.Region);
            transport.Exchange(mine.Region, (transport.Rank + 1) % ranks, other.Region, (transport.Rank + ranks - 1) % ranks);
            transport.Broadcast(mine.Region, 0);
            transport.Barrier();
        }

        Operate();
        Operate();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 50; i++)
        {
            Operate();
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    });
}
