using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>What every transport promises, tried on the ranks that are there. Small integers: exact in fp32 whatever the order.</summary>
internal static class TransportLaws
{
    private const int Length = 1027;

    /// <summary>Each law and whether it held on this rank. Every rank calls it.</summary>
    public static IReadOnlyList<(string Law, bool Holds)> Check(AttentionGroup group)
    {
        ITransport transport = group.Context.Transport;
        using var mine = new HostMemory(Length * sizeof(float), ElementType.Float32);
        using var all = new HostMemory((long)Length * transport.Size * sizeof(float), ElementType.Float32);
        return
        [
            ("all-reduce sum", AllReduce(transport, mine.Region, ReduceOperation.Sum, transport.Size * (transport.Size + 1) / 2)),
            ("all-reduce max", AllReduce(transport, mine.Region, ReduceOperation.Max, transport.Size)),
            ("all-gather", AllGather(transport, mine.Region, all.Region)),
            ("all-to-all", AllToAll(transport, all.Region)),
            ("broadcast", Broadcast(transport, mine.Region)),
            ("exchange", Exchange(transport, mine.Region, all.Region.Slice(0, Length))),
            ("send and receive", SendAndReceive(transport, mine.Region)),
            ("subgroups", Subgroups(transport, mine.Region)),
        ];
    }

    private static bool AllReduce(ITransport transport, Region region, ReduceOperation operation, float expected)
    {
        region.AsSpan<float>().Fill(transport.Rank + 1);
        transport.AllReduce(region, operation);
        return Holds(region, expected);
    }

    private static bool AllGather(ITransport transport, Region mine, Region all)
    {
        mine.AsSpan<float>().Fill(transport.Rank);
        transport.AllGather(mine, all);
        return Enumerable.Range(0, transport.Size).All(rank => Holds(all.Slice((long)rank * Length, Length), rank));
    }

    // Part i of rank r has the value 1000 r + i; afterwards part i holds what rank i meant for this rank.
    private static bool AllToAll(ITransport transport, Region outgoing)
    {
        using var incoming = new HostMemory(outgoing.Bytes, ElementType.Float32);
        long[] bytes = [.. Enumerable.Repeat((long)Length * sizeof(float), transport.Size)];
        for (int rank = 0; rank < transport.Size; rank++)
        {
            outgoing.Slice((long)rank * Length, Length).AsSpan<float>().Fill((1000 * transport.Rank) + rank);
        }

        transport.AllToAll(outgoing, bytes, incoming.Region, bytes);
        return Enumerable.Range(0, transport.Size)
            .All(rank => Holds(incoming.Region.Slice((long)rank * Length, Length), (1000 * rank) + transport.Rank));
    }

    private static bool Broadcast(ITransport transport, Region region)
    {
        int root = transport.Size - 1;
        region.AsSpan<float>().Fill(transport.Rank);
        transport.Broadcast(region, root);
        return Holds(region, root);
    }

    private static bool Exchange(ITransport transport, Region outgoing, Region incoming)
    {
        int next = (transport.Rank + 1) % transport.Size;
        int previous = (transport.Rank + transport.Size - 1) % transport.Size;
        outgoing.AsSpan<float>().Fill(transport.Rank);
        transport.Exchange(outgoing, next, incoming, previous);
        return Holds(incoming, previous);
    }

    // A number travels from rank 0 to the last one; each adds one.
    private static bool SendAndReceive(ITransport transport, Region region)
    {
        region.AsSpan<float>().Clear();
        if (transport.Rank > 0)
        {
            transport.Receive(region, transport.Rank - 1);
        }

        bool holds = Holds(region, transport.Rank);
        region.AsSpan<float>().Fill(transport.Rank + 1);
        if (transport.Rank + 1 < transport.Size)
        {
            transport.Send(region, transport.Rank + 1);
        }

        return holds;
    }

    // Even and odd ranks apart, each in descending order.
    private static bool Subgroups(ITransport transport, Region region)
    {
        int[] members = [.. Enumerable.Range(0, transport.Size).Where(rank => rank % 2 == transport.Rank % 2).OrderDescending()];
        using ITransport part = transport.Split(transport.Rank % 2, -transport.Rank);
        region.AsSpan<float>().Fill(transport.Rank);
        part.AllReduce(region, ReduceOperation.Sum);
        return part.Size == members.Length && members[part.Rank] == transport.Rank && Holds(region, members.Sum());
    }

    private static bool Holds(Region region, float value) => region.AsSpan<float>().IndexOfAnyExcept(value) < 0;
}
