using System;
using System.Collections.Generic;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Communication.Control;
using Xunit;

namespace TreeAttention.Tests.Communication.Control;

/// <summary>Ranks that meet at a port: each gets its own job's bytes, and who does not belong is told so at once.</summary>
public sealed class TcpRendezvousTests
{
    private static readonly TimeSpan _long = TimeSpan.FromMinutes(2);
    private readonly string _address = $"127.0.0.1:{FreePort()}";

    [Theory]
    [InlineData(0, 7, 8)] // by hand: directory and arguments tell the jobs apart
    [InlineData(1, 7, 7)] // by a launcher that names them
    public async Task Two_jobs_on_one_port_are_served_one_after_the_other(long jobs, long firstLike, long secondLike)
    {
        var first = new RendezvousVisitor(0, 3, jobs, firstLike);
        var second = new RendezvousVisitor(0, 3, 2 * jobs, secondLike);

        // The second job's ranks come first of all, and its rank 0 while the first job's listens.
        var taken = new List<Task<byte[]>> { Come(second with { Rank = 1 }), Come(first, [1]), Come(second, [2]), Come(second with { Rank = 2 }) };
        await Task.Delay(300, TestContext.Current.CancellationToken);
        taken.AddRange([Come(first with { Rank = 2 }), Come(first with { Rank = 1 })]);
        byte[][] got = await Task.WhenAll(taken);

        Assert.Equal([2, 1, 2, 2, 1, 1], got.Select(bytes => bytes[0]));
    }

    [Fact]
    public async Task A_rank_that_was_started_otherwise_is_taken_when_nobody_fits_better()
    {
        var root = new RendezvousVisitor(0, 2, 0, 7);

        byte[][] got = await Task.WhenAll(Come(root, [1]), Come(new RendezvousVisitor(1, 2, 0, 9)));

        Assert.Equal([1, 1], got.Select(bytes => bytes[0]));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public async Task A_rank_that_comes_twice_is_refused_at_once(int rank)
    {
        var root = new RendezvousVisitor(0, 3, 0, 7);
        Task<byte[]> whole = Come(root, [1]);
        Task<byte[]> once = rank == 0 ? Task.FromResult(Array.Empty<byte>()) : Come(root with { Rank = rank });
        await once;
        await UntilListening();

        FaultException fault = await Assert.ThrowsAsync<FaultException>(() => Come(root with { Rank = rank }, [3]));
        await Task.WhenAll(Come(root with { Rank = 2 }), rank == 0 ? Come(root with { Rank = 1 }) : once, whole);

        Assert.Equal(FaultCode.Unavailable, fault.Code);
        Assert.Contains($"There is a rank {rank} at {_address} already", fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Ranks_that_disagree_on_how_many_they_are_are_told_so()
    {
        var root = new RendezvousVisitor(0, 2, 0, 7);
        Task<byte[]> first = Come(root, [1]);

        FaultException theirs = await Assert.ThrowsAsync<FaultException>(() => Come(new RendezvousVisitor(1, 4, 0, 7)));
        FaultException ours = await Assert.ThrowsAsync<FaultException>(() => first);

        Assert.Equal((FaultCode.RanksDisagree, FaultCode.RanksDisagree), (theirs.Code, ours.Code));
        Assert.Contains("one of 4 ranks, rank 0 as one of 2", ours.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_visitor_that_says_nothing_sensible_is_left()
    {
        Task<byte[]> root = Come(new RendezvousVisitor(0, 2, 0, 7), [1]);
        await UntilListening();
        using (var stranger = new Socket(SocketType.Stream, ProtocolType.Tcp))
        {
            await stranger.ConnectAsync(IPEndPoint.Parse(_address), TestContext.Current.CancellationToken);
            stranger.Send("GET / HTTP/1.1\r\nHost: somebody else\r\n\r\n"u8);
        }

        byte[][] got = await Task.WhenAll(root, Come(new RendezvousVisitor(1, 2, 0, 7)));

        Assert.Equal([1], got[1]);
    }

    [Fact]
    public async Task Ranks_that_do_not_come_are_named()
    {
        FaultException fault = await Assert.ThrowsAsync<FaultException>(() => Come(new RendezvousVisitor(0, 3, 0, 7), [1], TimeSpan.FromMilliseconds(300)));

        Assert.Equal(FaultCode.NoProgress, fault.Code);
        Assert.Contains($"Rank 1, 2 of 3 did not come to {_address} within 0.3 s", fault.Message, StringComparison.Ordinal);
    }

    private Task<byte[]> Come(RendezvousVisitor visitor, byte[]? bytes = null, TimeSpan? limit = null) => Task.Factory.StartNew(
        () => new TcpRendezvous(_address, visitor, limit ?? _long).Broadcast(bytes ?? []),
        TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default);

    private async Task UntilListening()
    {
        while (true)
        {
            try
            {
                using var probe = new Socket(SocketType.Stream, ProtocolType.Tcp);
                await probe.ConnectAsync(IPEndPoint.Parse(_address), TestContext.Current.CancellationToken);
                return;
            }
            catch (SocketException)
            {
                Thread.Sleep(10);
            }
        }
    }

    private static int FreePort()
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        return ((IPEndPoint)socket.LocalEndPoint!).Port;
    }
}
