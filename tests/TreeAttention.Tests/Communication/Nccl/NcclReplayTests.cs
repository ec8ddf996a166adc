using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Posix;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>Whole steps over NCCL as graphs: kernels and collectives, launched again by one call. Each rank counts as alone in its process.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclReplayTests
{
    private static CpuCase Inputs(int ranks, bool lanes = false) => new CpuCase
    {
        Shape = new AttentionShape(1, 3, 1300, 4, 2, 16, 24),
        Type = ElementType.Float32,
        Layout = lanes ? ShardLayout.Lanes : ShardLayout.Contiguous,
        Ranks = ranks,
    }.Fill(3);

    private static AttentionPlan Plan(AttentionAlgorithm algorithm, ReductionKind reduction) => new(algorithm, reduction, QueryPlacement.Replicated);

    [Theory]
    [InlineData(2, AttentionAlgorithm.Tree, ReductionKind.ThreeAllReduce)]
    [InlineData(3, AttentionAlgorithm.Tree, ReductionKind.TwoAllReduce)]
    [InlineData(2, AttentionAlgorithm.Tree, ReductionKind.AllGather)]
    [InlineData(3, AttentionAlgorithm.Tree, ReductionKind.Butterfly)]
    [InlineData(4, AttentionAlgorithm.Tree, ReductionKind.TwoLevel)]
    [InlineData(3, AttentionAlgorithm.Tree, ReductionKind.AllToAll)]
    [InlineData(3, AttentionAlgorithm.Tree, ReductionKind.Lanes)]
    [InlineData(3, AttentionAlgorithm.Ring, ReductionKind.Auto)]
    [InlineData(2, AttentionAlgorithm.RingNoOverlap, ReductionKind.Auto)]
    [InlineData(3, AttentionAlgorithm.RingQuery, ReductionKind.Auto)]
    [InlineData(3, AttentionAlgorithm.Gather, ReductionKind.Auto)]
    public void A_step_is_launched_whole_with_the_bits_and_the_traffic_of_the_first(int ranks, AttentionAlgorithm algorithm, ReductionKind reduction)
    {
        CpuCase inputs = Inputs(ranks, lanes: reduction == ReductionKind.Lanes);
        int[] nodes = [.. Enumerable.Range(0, ranks).Select(rank => rank / 2)];
        NcclRanks.Run(ranks, (transport, device, control) =>
        {
            using var rank = new StepOfRank(transport, device, control, inputs, Plan(algorithm, reduction) with { Nodes = nodes });
            (PartialResult direct, TrafficCount sent) = rank.Run();
            (PartialResult captured, TrafficCount counted) = rank.Run();
            long launches = device.Launches;
            (PartialResult replayed, TrafficCount again) = rank.Run();

            Assert.Equal(launches, device.Launches);
            Assert.Equal((sent, sent), (counted, again));
            Assert.True(sent.Bytes > 0);
            Assert.Equal(direct.Output.Select(BitConverter.SingleToInt32Bits), captured.Output.Select(BitConverter.SingleToInt32Bits));
            Assert.Equal(direct.Output.Select(BitConverter.SingleToInt32Bits), replayed.Output.Select(BitConverter.SingleToInt32Bits));
            Assert.InRange(replayed.ErrorAgainst(inputs.Expected()), 0, 1e-5);
        }, areAlone: true);
    }

    [Fact]
    public void A_replay_sees_what_the_queries_are_by_then_on_every_rank() => NcclRanks.Run(2, (transport, device, control) =>
    {
        CpuCase changed = Inputs(2).Change(inputs => inputs.Query.AsSpan(0, 20).Fill(2));
        using var rank = new StepOfRank(transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Ring, ReductionKind.Auto));
        using var other = new DeviceCall(changed, device, transport.Rank);
        rank.Run();
        PartialResult before = rank.Run().Result;

        device.Copy(other.Queries.Values, rank.Call.Queries.Values);
        PartialResult seen = rank.Run().Result;

        Assert.InRange(seen.ErrorAgainst(changed.Expected()), 0, 1e-5);
        Assert.NotEqual(before.Output, seen.Output);
    }, areAlone: true);

    [Fact]
    public void Ranks_of_one_process_do_not_capture() => NcclRanks.Run(2, (transport, device, control) =>
    {
        using var rank = new StepOfRank(
            transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Tree, ReductionKind.AllGather));
        rank.Run();
        rank.Run();
        long launches = device.Launches;

        rank.Run();

        Assert.False(transport.IsCapturable);
        Assert.True(device.Launches > launches);
    });

    [Fact]
    public void A_rank_that_launches_nothing_while_the_others_do_is_found()
    {
        // One rank begins anew, with other queries: its collectives are direct, those of the other are a graph's.
        FaultException fault = Assert.Throws<FaultException>(() => NcclRanks.Run(2, (transport, device, control) =>
        {
            using var rank = new StepOfRank(
                transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Tree, ReductionKind.AllGather));
            rank.Run();
            rank.Run();
            rank.Run(rank.Call.Queries with { Values = rank.Call.Queries.Values });
            rank.Run(transport.Rank == 0 ? rank.Call.Queries : rank.Call.Queries with { Values = rank.Call.Queries.Values });
            rank.Run(transport.Rank == 0 ? rank.Call.Queries : rank.Call.Queries with { Values = rank.Call.Queries.Values });
        }, areAlone: true));

        Assert.Equal(FaultCode.CommunicationFault, fault.Code);
        Assert.Contains("in a graph of capture", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void An_asynchronous_error_in_a_replay_ends_all_ranks_with_203()
    {
        const string Planted = "TREEATTN_EMULATION_NCCL_FAULT";
        LibC.SetEnvironment(Planted, "1:5:3", overwrite: 1);
        int[] runs = new int[3];
        try
        {
            FaultException fault = Assert.Throws<FaultException>(() => NcclRanks.Run(3, (transport, device, control) =>
            {
                using var rank = new StepOfRank(
                    transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Tree, ReductionKind.AllGather));
                for (runs[transport.Rank] = 0; runs[transport.Rank] < 10; runs[transport.Rank]++)
                {
                    rank.Run();
                }
            }, areAlone: true));

            Assert.Equal(FaultCode.CommunicationFault, fault.Code);
            Assert.Contains("ncclInternalError", fault.Message, StringComparison.Ordinal);
            Assert.Equal(4, runs[1]); // one collective a run
        }
        finally
        {
            LibC.SetEnvironment(Planted, "", overwrite: 1);
        }
    }

    [Fact]
    public void A_rank_that_fails_by_itself_is_what_those_are_told_that_wait_in_a_replay()
    {
        FaultException fault = Assert.Throws<FaultException>(() => NcclRanks.Run(3, (transport, device, control) =>
        {
            using var rank = new StepOfRank(
                transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Ring, ReductionKind.Auto));
            for (int run = 0; run < 4; run++)
            {
                if (transport.Rank == 2 && run == 3)
                {
                    throw new FaultException(FaultCode.BadInput, "the third rank's file is broken");
                }

                rank.Run();
            }
        }, areAlone: true));

        Assert.Equal((FaultCode.BadInput, "the third rank's file is broken"), (fault.Code, fault.Message));
    }

    [Fact]
    public void Graphs_end_before_the_communicator_that_they_hold() => NcclRanks.Run(2, (transport, device, control) =>
    {
        using var rank = new StepOfRank(
            transport, device, control, Inputs(transport.Size), Plan(AttentionAlgorithm.Tree, ReductionKind.AllGather));
        rank.Run();
        rank.Run();

        transport.Leave(); // the emulated NCCL refuses while there are graphs

        Assert.Throws<ObjectDisposedException>(() => rank.Run());
    }, leaves: false, areAlone: true);

    [Fact]
    public void Regions_of_the_host_cannot_be_captured_and_the_transport_goes_on() => NcclRanks.Run(2, (transport, device, _) =>
    {
        using var host = new HostFloats(10);
        Region region = device.Allocate(40, ElementType.Float32);
        transport.AllReduce(host.Region, ReduceOperation.Sum);

        Assert.Throws<InvalidOperationException>(() => device.Capture(() => transport.AllReduce(host.Region, ReduceOperation.Sum)));
        Assert.Throws<InvalidOperationException>(() => device.Capture(transport.Barrier));

        transport.AllReduce(region, ReduceOperation.Sum);
        device.Synchronize();
    }, areAlone: true);
}
