using System;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Communication.Staging;

/// <summary>What every transport of device memory does alike: what arrives is what left, in the order of the device's stream. A subclass says how ranks are started.</summary>
public abstract class DeviceTransportConformance
{
    private protected const int Length = 1001;

    private static readonly int[] _rankCounts = [2, 3];

    public static TheoryData<ReductionKind, int> Reductions => [.. Enum.GetValues<ReductionKind>()
        .Where(kind => kind is not (ReductionKind.Auto or ReductionKind.Lanes))
        .SelectMany(kind => _rankCounts.Select(ranks => new TheoryDataRow<ReductionKind, int>(kind, ranks)))];

    [Theory, MemberData(nameof(Reductions))]
    public void Every_reduction_folds_states_of_devices(ReductionKind kind, int ranks)
    {
        const int Rows = 10;
        const int ValueDim = 24;
        using var hosts = new HostStates(ranks, Rows, ValueDim, seed: 11);
        using var expected = new HostStates(ranks, Rows, ValueDim, seed: 11);
        foreach (PartialAttention other in expected.States.Skip(1))
        {
            expected.States[0].MergeFrom(other);
        }

        RunOnEachRank(ranks, (transport, device, control) =>
        {
            var context = new RankContext(transport, device, control);
            if (kind == ReductionKind.Fused && !transport.CanReduceStates)
            {
                Assert.Equal(FaultCode.Unavailable, Assert.Throws<FaultException>(() => ReductionFactory.Create(kind, context, Rows, ValueDim)).Code);
                return;
            }

            using Reduction reduction = ReductionFactory.Create(kind, context, Rows, ValueDim);
            PartialAttention mine = hosts.States[transport.Rank];
            var state = new PartialAttention(device.Allocate(mine.Region.Bytes, ElementType.Float32), Rows, ValueDim);
            for (int round = 0; round < 3; round++)
            {
                device.Copy(mine.Region, state.Region);

                reduction.Reduce(state);

                Assert.InRange(DeviceCall.Read(device, state).ErrorAgainst(PartialResult.Of(expected.States[0])), 0, 2e-6);
            }
        });
    }

    [Fact]
    public void Messages_exchanges_and_broadcasts_arrive() => RunOnEachRank(3, (transport, device, _) =>
    {
        Region outgoing = Filled(device, transport.Rank);
        Region incoming = Filled(device, -1);
        int next = (transport.Rank + 1) % 3;
        int previous = (transport.Rank + 2) % 3;

        transport.StartExchange(outgoing, next, incoming, previous);
        device.Synchronize();
        transport.Complete();
        Assert.Equal(previous, Only(device, incoming));

        transport.Broadcast(incoming, 2);
        Assert.Equal(1, Only(device, incoming));

        if (transport.Rank == 0)
        {
            transport.Send(outgoing, 1);
        }
        else if (transport.Rank == 1)
        {
            transport.Receive(incoming, 0);
            Assert.Equal(0, Only(device, incoming));
        }
    });

    [Fact]
    public void Several_arrivals_in_a_row_do_not_overwrite_each_other() => RunOnEachRank(2, (transport, device, _) =>
    {
        Region[] regions = [.. Enumerable.Range(0, 4).Select(n => Filled(device, transport.Rank == 0 ? n : -1))];

        foreach (Region region in regions)
        {
            if (transport.Rank == 0)
            {
                transport.Send(region, 1);
            }
            else
            {
                transport.Receive(region, 0);
            }
        }

        Assert.Equal([0, 1, 2, 3], regions.Select(region => Only(device, region)));
    });

    [Fact]
    public void Groups_of_a_split_and_regions_of_the_host_go_through() => RunOnEachRank(4, (transport, device, _) =>
    {
        using ITransport half = transport.Split(transport.Rank % 2, transport.Rank);
        Region region = Filled(device, transport.Rank);
        using var host = new HostMemory(sizeof(float), ElementType.Float32);
        host.Region.AsSpan<float>()[0] = 1;

        half.AllReduce(region, ReduceOperation.Sum);
        transport.AllReduce(host.Region, ReduceOperation.Sum);

        Assert.Equal(transport.Rank % 2 == 0 ? 2 : 4, Only(device, region));
        Assert.Equal(4, host.Region.AsSpan<float>()[0]);
    });

    [Fact]
    public void Traffic_counts_what_the_inner_transport_sent() => RunOnEachRank(2, (transport, device, _) =>
    {
        Region region = Filled(device, 1);

        transport.AllReduce(region, ReduceOperation.Max);

        Assert.Equal(Length * sizeof(float), transport.Traffic.BytesSent);
        Assert.Equal(1, transport.Traffic.Collectives);
    });

    private protected abstract void RunOnEachRank(int ranks, Action<ITransport, IDevice, IControlPlane> body);

    private protected static Region Filled(IDevice device, float value)
    {
        using var host = new HostMemory(Length * sizeof(float), ElementType.Float32);
        host.Region.AsSpan<float>().Fill(value);
        Region region = device.Allocate(host.Region.Bytes, ElementType.Float32);
        device.Copy(host.Region, region);
        return region;
    }

    private protected static float Only(IDevice device, Region region)
    {
        using var host = new HostMemory(region.Bytes, ElementType.Float32);
        device.Copy(region, host.Region);
        return Assert.Single(host.Region.AsSpan<float>().ToArray().Distinct());
    }
}
