using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Ranks;

/// <summary>What every operation of a transport must do, run on all ranks at once.</summary>
internal static class TransportChecks
{
    // 1 and 3 lie below a vector, 257 floats are no multiple of a piece of 1,000 bytes, 40,000 go by rendezvous.
    private static readonly int[] _counts = [0, 1, 3, 257, 40_000];

    internal static IEnumerable<(string Name, Action<ITransport> Run)> All =>
    [
        ("messages around the ring", MessagesAroundTheRing),
        ("exchange both ways", ExchangeBothWays),
        ("started exchange overlaps", StartedExchangeOverlaps),
        ("all-reduce sum and max", AllReduceSumAndMax),
        ("all-reduce has the same bits on every rank", AllReduceHasTheSameBits),
        ("states against float64", StatesAgainstFloat64),
        ("states of different shapes", StatesOfDifferentShapes),
        ("all-gather", AllGather),
        ("uneven all-to-all", UnevenAllToAll),
        ("broadcast from every root", BroadcastFromEveryRoot),
        ("barrier", transport => transport.Barrier()),
        ("split", Split),
        ("refusals", Refusals),
        ("a message too long for its receiver", MessageTooLong),
        ("no allocation", NoAllocation),
    ];

    private static void MessagesAroundTheRing(ITransport transport)
    {
        if (transport.Size == 1)
        {
            return;
        }

        int right = (transport.Rank + 1) % transport.Size;
        int left = (transport.Rank + transport.Size - 1) % transport.Size;
        foreach (int count in _counts)
        {
            using HostMemory outgoing = Floats(count, i => Value(transport.Rank, i));
            using HostMemory incoming = Floats(count, _ => -1);
            long before = transport.Traffic.BytesSent;
            if (transport.Rank % 2 == 0)
            {
                transport.Send(outgoing.Region, right);
                transport.Receive(incoming.Region, left);
            }
            else
            {
                transport.Receive(incoming.Region, left);
                transport.Send(outgoing.Region, right);
            }

            Check.Same<float>(Expected(count, i => Value(left, i)), incoming.Region.AsSpan<float>(), $"message of {count}");
            Check.Equal(4L * count, transport.Traffic.BytesSent - before, "bytes sent");
        }
    }

    private static void ExchangeBothWays(ITransport transport)
    {
        int right = (transport.Rank + 1) % transport.Size;
        int left = (transport.Rank + transport.Size - 1) % transport.Size;
        foreach (int count in _counts)
        {
            // Lengths differ from rank to rank; a rank may exchange with itself.
            using HostMemory outgoing = Floats(count + transport.Rank, i => Value(transport.Rank, i));
            using HostMemory incoming = Floats(count + left, _ => -1);

            transport.Exchange(outgoing.Region, right, incoming.Region, left);

            Check.Same<float>(Expected(count + left, i => Value(left, i)), incoming.Region.AsSpan<float>(), $"exchange of {count}");
        }

        // One side empty: only rank 0 sends.
        using HostMemory one = Floats(5, i => i + transport.Rank);
        Region nothing = Region.Empty;
        if (transport.Size > 1 && transport.Rank == 0)
        {
            transport.Exchange(one.Region, 1, nothing, 1);
        }
        else if (transport.Rank == 1)
        {
            transport.Exchange(nothing, 0, one.Region, 0);
            Check.Equal(0f, one.Region.AsSpan<float>()[0], "one-sided exchange");
        }
    }

    private static void StartedExchangeOverlaps(ITransport transport)
    {
        int right = (transport.Rank + 1) % transport.Size;
        int left = (transport.Rank + transport.Size - 1) % transport.Size;
        using HostMemory outgoing = Floats(50_001, i => Value(transport.Rank, i));
        using HostMemory incoming = Floats(50_001, _ => -1);
        using HostMemory sum = Floats(9, _ => 1);

        transport.StartExchange(outgoing.Region, right, incoming.Region, left);
        Check.Throws<InvalidOperationException>(
            () => transport.StartExchange(outgoing.Region, right, incoming.Region, left), "a second exchange");
        transport.AllReduce(sum.Region, ReduceOperation.Sum);
        transport.Complete();

        Check.Equal(transport.Size, (int)sum.Region.AsSpan<float>()[8], "all-reduce beside an exchange");
        Check.Same<float>(Expected(50_001, i => Value(left, i)), incoming.Region.AsSpan<float>(), "started exchange");
    }

    private static void AllReduceSumAndMax(ITransport transport)
    {
        int ranks = transport.Size;
        foreach (int count in _counts)
        {
            using HostMemory sum = Floats(count, i => i % 100 + transport.Rank);
            using HostMemory max = Floats(count, i => i % ranks == transport.Rank ? i : -1e30f);

            transport.AllReduce(sum.Region, ReduceOperation.Sum);
            transport.AllReduce(max.Region, ReduceOperation.Max);

            Check.Same<float>(Expected(count, i => (ranks * (i % 100)) + (ranks * (ranks - 1) / 2)), sum.Region.AsSpan<float>(), "sum");
            Check.Same<float>(Expected(count, i => i), max.Region.AsSpan<float>(), "max");
        }
    }

    private static void AllReduceHasTheSameBits(ITransport transport)
    {
        foreach (int count in _counts)
        {
            var random = new Random(20261121 + transport.Rank);
            float[] values = Expected(count, _ => (float)((random.NextDouble() - 0.5) * Math.Pow(10, random.Next(-6, 7))));
            using HostMemory sum = Floats(count, i => values[i]);
            transport.AllReduce(sum.Region, ReduceOperation.Sum);
            RequireSameBits(transport, sum.Region);
        }
    }

    private static void StatesAgainstFloat64(ITransport transport)
    {
        foreach ((int rows, int valueDim) in ((int, int)[])[(1, 1), (3, 64), (32, 128), (7, 129), (2000, 64)])
        {
            int floats = (int)PartialAttention.FloatsFor(rows, valueDim);
            using HostMemory memory = Floats(floats, _ => 0);
            PartialAttention state = StateSample.Fill(memory, rows, valueDim, transport.Rank);

            transport.AllReduceStates(state);

            StateSample.RequireMergeOf(state, transport.Size);
            RequireSameBits(transport, state.Region);
        }
    }

    private static void StatesOfDifferentShapes(ITransport transport)
    {
        // The same number of floats, other rows: the operator must not take one for the other.
        foreach ((int rows, int valueDim) in ((int, int)[])[(6, 2), (4, 4), (3, 6), (6, 2)])
        {
            int floats = (int)PartialAttention.FloatsFor(rows, valueDim);
            using HostMemory memory = Floats(floats, _ => 0);
            PartialAttention state = StateSample.Fill(memory, rows, valueDim, transport.Rank);
            transport.AllReduceStates(state);
            StateSample.RequireMergeOf(state, transport.Size);
        }
    }

    private static void AllGather(ITransport transport)
    {
        foreach (int count in _counts)
        {
            using HostMemory mine = Floats(count, i => Value(transport.Rank, i));
            using HostMemory all = Floats(count * transport.Size, _ => -1);

            transport.AllGather(mine.Region, all.Region);

            float[] expected = [.. Enumerable.Range(0, transport.Size).SelectMany(rank => Expected(count, i => Value(rank, i)))];
            Check.Same<float>(expected, all.Region.AsSpan<float>(), $"all-gather of {count}");
        }
    }

    private static void UnevenAllToAll(ITransport transport)
    {
        int ranks = transport.Size;
        foreach (int scale in (int[])[1, 5003])
        {
            // Some parts are empty, and rank 2 sends nothing at all.
            long Bytes(int from, int to) => from == 2 ? 0 : sizeof(float) * scale * (((from * 2) + (to * 3)) % 5L);
            long[] outgoingBytes = [.. Enumerable.Range(0, ranks).Select(to => Bytes(transport.Rank, to))];
            long[] incomingBytes = [.. Enumerable.Range(0, ranks).Select(from => Bytes(from, transport.Rank))];
            using HostMemory outgoing = Floats((int)(outgoingBytes.Sum() / 4), i => Value(transport.Rank, i));
            using HostMemory incoming = Floats((int)(incomingBytes.Sum() / 4), _ => -1);
            long before = transport.Traffic.BytesSent;

            transport.AllToAll(outgoing.Region, outgoingBytes, incoming.Region, incomingBytes);

            var expected = new List<float>();
            for (int from = 0; from < ranks; from++)
            {
                int first = (int)(Enumerable.Range(0, transport.Rank).Sum(to => Bytes(from, to)) / 4);
                expected.AddRange(Enumerable.Range(first, (int)(incomingBytes[from] / 4)).Select(i => Value(from, i)));
            }

            Check.Same<float>(CollectionsMarshal.AsSpan(expected), incoming.Region.AsSpan<float>(), "all-to-all");
            Check.Equal(outgoingBytes.Sum() - outgoingBytes[transport.Rank], transport.Traffic.BytesSent - before, "bytes of all-to-all");
        }
    }

    private static void BroadcastFromEveryRoot(ITransport transport)
    {
        for (int root = 0; root < transport.Size; root++)
        {
            foreach (int count in _counts)
            {
                using HostMemory memory = Floats(count, i => transport.Rank == root ? Value(root, i) : -1);
                transport.Broadcast(memory.Region, root);
                Check.Same<float>(Expected(count, i => Value(root, i)), memory.Region.AsSpan<float>(), "broadcast");
            }
        }
    }

    private static void Split(ITransport transport)
    {
        // Even and odd ranks, in reverse order.
        using ITransport part = transport.Split(transport.Rank % 2, -transport.Rank);
        int[] members = [.. Enumerable.Range(0, transport.Size).Where(rank => rank % 2 == transport.Rank % 2).Reverse()];
        using HostMemory sum = Floats(3, _ => transport.Rank);
        using HostMemory mine = Floats(1, _ => transport.Rank);
        using HostMemory all = Floats(members.Length, _ => -1);

        part.AllReduce(sum.Region, ReduceOperation.Sum);
        part.AllGather(mine.Region, all.Region);

        Check.Equal(members.Length, part.Size, "size of a part");
        Check.Equal(transport.Rank, members[part.Rank], "member of a part");
        Check.Equal(members.Sum(), (int)sum.Region.AsSpan<float>()[2], "sum of a part");
        Check.Same<float>([.. members.Select(rank => (float)rank)], all.Region.AsSpan<float>(), "gather of a part");
        Check.Equal(transport.Traffic, part.Traffic, "traffic of a part");
        Check.Equal(part.Size, part.Nodes.Count(node => node == 0), "nodes of a part");
    }

    private static void Refusals(ITransport transport)
    {
        using HostMemory memory = Floats(4, _ => 0);
        Region onDevice = memory.Region with { Place = MemoryPlace.Device };
        Region bytes = memory.Region with { Type = ElementType.Byte };
        Check.Throws<FaultException>(() => transport.AllReduce(onDevice, ReduceOperation.Sum), "a device region");
        Check.Throws<ArgumentException>(() => transport.AllReduce(bytes, ReduceOperation.Sum), "a sum of bytes");
        Check.Throws<ArgumentException>(() => transport.AllGather(memory.Region, memory.Region.Slice(0, 3)), "a short gather");
        try
        {
            transport.Send(memory.Region, transport.Size + 3);
        }
        catch (FaultException fault)
        {
            Check.Equal(FaultCode.CommunicationFault, fault.Code, "code of a bad rank");
            Check.That(
                fault.Message.StartsWith($"Rank {transport.Rank} of {transport.Size}: send of 16 bytes failed with MPI_ERR_RANK: ", StringComparison.Ordinal),
                fault.Message);
            return;
        }

        throw new CheckFailedException("a message to a rank that is not there went somewhere");
    }

    private static void MessageTooLong(ITransport transport)
    {
        using HostMemory memory = Floats(4, _ => 1);
        if (transport.Rank == 1)
        {
            transport.Send(memory.Region, 0);
        }
        else if (transport.Rank == 0 && transport.Size > 1)
        {
            try
            {
                transport.Receive(memory.Region.Slice(0, 2), 1);
            }
            catch (FaultException fault)
            {
                Check.That(fault.Message.Contains("receive of 8 bytes failed with MPI_ERR_TRUNCATE: ", StringComparison.Ordinal), fault.Message);
                Check.That(fault.Message.Contains("The ranks disagree on the length", StringComparison.Ordinal), fault.Message);
                return;
            }

            throw new CheckFailedException("a message of 16 bytes fitted into 8");
        }
    }

    private static void NoAllocation(ITransport transport)
    {
        using HostMemory sum = Floats(100, _ => 1);
        using HostMemory other = Floats(100, _ => 1);
        using HostMemory memory = Floats((int)PartialAttention.FloatsFor(4, 16), _ => 0);
        PartialAttention state = StateSample.Fill(memory, 4, 16, transport.Rank);
        int right = (transport.Rank + 1) % transport.Size;
        int left = (transport.Rank + transport.Size - 1) % transport.Size;
        long allocated = 0;
        for (int round = 0; round < 40; round++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            transport.AllReduce(sum.Region, ReduceOperation.Max);
            transport.AllReduceStates(state);
            transport.Exchange(sum.Region, right, other.Region, left);
            transport.Broadcast(sum.Region, 0);
            transport.Barrier();
            allocated = GC.GetAllocatedBytesForCurrentThread() - before;
        }

        Check.Equal(0, allocated, "bytes allocated by a round of operations");
    }

    private static unsafe void RequireSameBits(ITransport transport, Region region)
    {
        int[] all = new int[region.Count * transport.Size];
        fixed (int* address = all)
        {
            transport.AllGather(region, region with { Address = (nint)address, Bytes = region.Bytes * transport.Size });
        }

        int count = (int)region.Count;
        for (int rank = 0; rank < transport.Size; rank++)
        {
            Check.Same<int>(region.AsSpan<int>(), all.AsSpan(rank * count, count), $"bits of rank {rank}");
        }
    }

    private static float Value(int rank, int i) => (1000 * rank) + (i % 971);

    private static float[] Expected(int count, Func<int, float> value) => [.. Enumerable.Range(0, count).Select(value)];

    private static HostMemory Floats(int count, Func<int, float> value)
    {
        var memory = new HostMemory(4L * count, ElementType.Float32);
        Span<float> floats = memory.Region.AsSpan<float>();
        for (int i = 0; i < count; i++)
        {
            floats[i] = value(i);
        }

        return memory;
    }
}
