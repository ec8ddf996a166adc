using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using TreeAttention.Tests.Communication.Staging;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>Device regions over NCCL: in the order of the device's stream, with nobody waiting.</summary>
[Collection(EmulatedGpu.Name)]
public sealed unsafe class NcclDeviceTests : DeviceTransportConformance
{
    [Fact]
    public void Operations_are_only_enqueued_until_someone_waits() => NcclRanks.Run(1, (transport, device, _) =>
    {
        Region mine = Filled(device, 3);
        Region other = Filled(device, 4);
        device.Synchronize();

        transport.AllGather(mine, other);
        float before = *(float*)other.Address; // an emulated GPU's memory is the host's
        device.Synchronize();
        float after = *(float*)other.Address;

        Assert.Equal((4, 3), (before, after));
    });

    [Fact]
    public void A_started_exchange_overlaps_work_that_does_not_touch_it_and_is_joined_by_complete() => NcclRanks.Run(3, (transport, device, _) =>
    {
        int next = (transport.Rank + 1) % 3;
        int previous = (transport.Rank + 2) % 3;
        Region current = Filled(device, transport.Rank);
        Region[] visitors = [Filled(device, -1), Filled(device, -1)];
        Region sum = Filled(device, 0);
        for (int hop = 0; hop < 2; hop++)
        {
            transport.StartExchange(current, next, visitors[hop], previous);
            device.Copy(current, sum);
            transport.AllReduce(sum, ReduceOperation.Sum); // beside the exchange
            transport.Complete();
            device.Copy(visitors[hop], current); // overwrites what was sent
        }

        Assert.Equal(3, Only(device, sum));
        Assert.Equal((transport.Rank + 1) % 3, Only(device, current));
    });

    [Fact]
    public void A_device_learns_what_arrives_in_its_memory() => NcclRanks.Run(2, (transport, device, _) =>
    {
        // The queries that arrive are too large for fp32, those of before are not: the device must not treat them alike.
        CpuCase inputs = new CpuCase { Shape = new AttentionShape(1, 2, 5, 1, 1, 16, 16) }.Fill();
        using var call = new DeviceCall(inputs, device);
        PartialResult modest = call.Attend();
        CpuCase huge = inputs.Change(one => Array.Fill(one.Query, 3e37f));
        using var expected = new DeviceCall(huge, device);

        transport.Exchange(expected.Queries.Values, 1 - transport.Rank, call.Queries.Values, 1 - transport.Rank);
        PartialResult arrived = call.Attend();

        Assert.NotEqual(modest.Max, arrived.Max);
        Assert.Equal(expected.Attend().Max, arrived.Max);
    });

    [Fact]
    public void Automatic_choice_keeps_to_what_the_host_need_not_wait_for() => NcclRanks.Run(2, (transport, device, control) =>
    {
        using Reduction reduction = ReductionFactory.Create(ReductionKind.Auto, new RankContext(transport, device, control), 4, 8);

        Assert.Equal(ReductionKind.AllGather, reduction.Kind);
    });

    private protected override void RunOnEachRank(int ranks, Action<ITransport, IDevice, IControlPlane> body) =>
        NcclRanks.Run(ranks, (transport, device, control) => body(transport, device, control));
}
