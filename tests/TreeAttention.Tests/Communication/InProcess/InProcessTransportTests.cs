using System;
using System.Diagnostics;
using System.Threading;
using TreeAttention.Communication.InProcess;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Communication.InProcess;

public sealed class InProcessTransportTests : TransportConformance
{
    [Fact]
    public void Nodes_are_numbered_by_first_appearance()
    {
        using var group = InProcessGroup.Create(4, [7, 3, 7, 9]);

        Assert.Equal([0, 1, 0, 2], group.Transports[0].Nodes);
    }

    [Fact]
    public void Nodes_of_another_number_of_ranks_are_refused()
    {
        FaultException fault = Assert.Throws<FaultException>(() => InProcessGroup.Create(3, [0, 1]));

        Assert.Equal(FaultCode.CommandLine, fault.Code);
        Assert.Contains("2 ranks, but there are 3", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Ranks_on_several_nodes_share_no_peer_memory()
    {
        using var group = InProcessGroup.Create(2, [0, 1]);

        group.Run(rank => Assert.Null(group.Transports[rank].SharePeerMemory(8)));
    }

    [Fact]
    public void A_message_of_another_length_names_both_lengths()
    {
        using var group = InProcessGroup.Create(2);

        FaultException fault = Assert.Throws<FaultException>(() => group.Run(rank =>
        {
            using var values = new HostFloats(rank + 1);
            if (rank == 0)
            {
                group.Transports[rank].Send(values.Region, 1);
            }
            else
            {
                group.Transports[rank].Receive(values.Region, 0);
            }
        }));

        Assert.Equal(FaultCode.RanksDisagree, fault.Code);
        Assert.Contains("sent 4 bytes to rank 1, which expected 8", fault.Message, StringComparison.Ordinal);
    }

    [Theory, InlineData("barrier"), InlineData("receive"), InlineData("send"), InlineData("peer memory"), InlineData("control")]
    public void A_rank_that_throws_ends_the_others_waits(string wait)
    {
        using var group = InProcessGroup.Create(3);
        var codes = new FaultCode[3];
        long start = Stopwatch.GetTimestamp();

        TimeoutException thrown = Assert.Throws<TimeoutException>(() => group.Run(rank =>
        {
            InProcessTransport transport = group.Transports[rank];
            using IPeerMemory peers = transport.SharePeerMemory(8)!;
            if (rank == 1)
            {
                Thread.Sleep(50);
                throw new TimeoutException("the second rank is late");
            }

            codes[rank] = Assert.Throws<FaultException>(() => Wait(wait, transport, group.Controls[rank], peers)).Code;
        }));

        Assert.Equal("the second rank is late", thrown.Message);
        Assert.Equal([FaultCode.PeerLost, FaultCode.None, FaultCode.PeerLost], codes);
        Assert.InRange(Stopwatch.GetElapsedTime(start), TimeSpan.Zero, TimeSpan.FromSeconds(10));
    }

    [Fact]
    public void A_rank_that_leaves_is_named_to_those_that_wait_for_it()
    {
        using var group = InProcessGroup.Create(2);

        FaultException fault = Assert.Throws<FaultException>(() => group.Run(rank =>
        {
            if (rank == 0)
            {
                group.Transports[rank].Barrier();
            }
        }));

        Assert.Equal((FaultCode.PeerLost, 1), (fault.Code, fault.Rank));
    }

    [Fact]
    public void An_abort_carries_its_code_and_reason_to_every_rank()
    {
        using var group = InProcessGroup.Create(2);
        FaultException? seen = null;

        group.Controls[1].Abort(FaultCode.Interrupted, "SIGINT");
        seen = Assert.Throws<FaultException>(() => group.Transports[0].Barrier());

        Assert.Equal(FaultCode.PeerLost, seen.Code);
        Assert.Equal(FaultCode.Interrupted, Assert.IsType<FaultException>(seen.InnerException).Code);
        Assert.Contains("Rank 1 ended the group: SIGINT", seen.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void The_control_plane_works_beside_an_unfinished_exchange()
    {
        using var group = InProcessGroup.Create(2);

        group.Run(rank =>
        {
            using var mine = HostFloats.Filled(4, rank);
            using var other = new HostFloats(4);
            group.Transports[rank].StartExchange(mine.Region, 1 - rank, other.Region, 1 - rank);
            byte[] gathered = [.. System.Linq.Enumerable.SelectMany(group.Controls[rank].AllGather(new[] { (byte)(rank + 5) }), one => one)];
            group.Transports[rank].Complete();

            Assert.Equal([5, 6], gathered);
            Assert.Equal(1 - rank, other.Values[0]);
            Assert.Equal((16, 1), (group.Transports[rank].Traffic.BytesSent, group.Transports[rank].Traffic.ControlBytes));
        });
    }

    [Fact]
    public void A_rank_that_leaves_with_a_fault_frees_memory_only_after_its_readers_are_done()
    {
        // Ranks 0 and 1 exchange 8 MB again and again, so that rank 2's fault meets a copy; freed pages would end the process.
        for (int trial = 0; trial < 10; trial++)
        {
            using var group = InProcessGroup.Create(3);
            Assert.Throws<TimeoutException>(() => group.Run(rank =>
            {
                if (rank == 2)
                {
                    Thread.Sleep(5 + trial);
                    throw new TimeoutException();
                }

                using var outgoing = new HostFloats(1 << 21);
                using var incoming = new HostFloats(1 << 21);
                while (true)
                {
                    group.Transports[rank].Exchange(outgoing.Region, 1 - rank, incoming.Region, 1 - rank);
                }
            }));
        }
    }

    [Fact]
    public void A_second_exchange_before_the_first_is_complete_is_refused()
    {
        using var group = InProcessGroup.Create(2);
        using var values = new HostFloats(1);
        group.Transports[0].StartExchange(values.Region, 1, Region.Empty, 1);

        Assert.Throws<InvalidOperationException>(() => group.Transports[0].Send(values.Region, 1));
    }

    [Fact]
    public void The_operation_under_way_is_known()
    {
        using var group = InProcessGroup.Create(1);

        group.Controls[0].Enter("ring hop");
        Assert.Equal("ring hop", group.Controls[0].Operation);
        group.Controls[0].Leave();
        Assert.Empty(group.Controls[0].Operation);
    }

    private protected override void RunOnEachRank(int ranks, Action<ITransport> body)
    {
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank => body(group.Transports[rank]));
    }

    private static void Wait(string wait, InProcessTransport transport, InProcessControlPlane control, IPeerMemory peers)
    {
        using var values = new HostFloats(4);
        switch (wait)
        {
            case "barrier":
                transport.Barrier();
                break;
            case "receive":
                transport.Receive(values.Region, 1);
                break;
            case "send":
                transport.Send(values.Region, 1);
                break;
            case "peer memory":
                peers.Publish();
                peers.AwaitAll();
                break;
            default:
                control.AllGather(new byte[1]);
                break;
        }
    }
}
