using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Cli.Verify;

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
        var ring = new Ring(transport.Rank, transport.Size);
        outgoing.AsSpan<float>().Fill(transport.Rank);
        transport.Exchange(outgoing, ring.Next, incoming, ring.Previous);
        return Holds(incoming, ring.Previous);
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

/// <summary>What every device promises of merging, tried on states as ranks exchange them.</summary>
internal static class DeviceLaws
{
    private const int Rows = 37;
    private const int ValueDim = 19;

    /// <summary>Two states merge to the same bits in either order, with rows among them that no key or one side alone was seen of.</summary>
    public static bool MergeCommutes(IDevice device)
    {
        byte[] oneWay = Merged(device, 1, 2);
        byte[] otherWay = Merged(device, 2, 1);
        byte[] another = Merged(device, 1, 3);
        return oneWay.AsSpan().SequenceEqual(otherWay) && !oneWay.AsSpan().SequenceEqual(another);
    }

    private static byte[] Merged(IDevice device, int into, int from)
    {
        using var host = new HostMemory(PartialAttention.FloatsFor(Rows, ValueDim) * sizeof(float), ElementType.Float32);
        Region[] regions = [device.Allocate(host.Region.Bytes, ElementType.Float32), device.Allocate(host.Region.Bytes, ElementType.Float32)];
        foreach ((int seed, Region region) in ((int, Region)[])[(into, regions[0]), (from, regions[1])])
        {
            Fill(new PartialAttention(host.Region, Rows, ValueDim), new Random(seed));
            device.Copy(host.Region, region);
            device.Synchronize();
        }

        device.Merge(new PartialAttention(regions[0], Rows, ValueDim), new PartialAttention(regions[1], Rows, ValueDim));
        device.Copy(regions[0], host.Region);
        device.Synchronize();
        device.Free(regions[0]);
        device.Free(regions[1]);
        return host.Region.AsSpan<byte>().ToArray();
    }

    private static void Fill(PartialAttention state, Random random)
    {
        state.Clear();
        for (int row = 0; row < Rows; row++)
        {
            if (random.Next(4) > 0)
            {
                state.Max[row] = (random.NextSingle() * 40) - 20;
                state.Sum[row] = 1 + (random.NextSingle() * 100);
                foreach (ref float value in state.Output.Slice(row * ValueDim, ValueDim))
                {
                    value = (random.NextSingle() * 2) - 1;
                }
            }
        }
    }
}
