using System;
using System.Collections.Concurrent;
using System.Collections.Generic;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Communication.Control;
using Xunit;

namespace TreeAttention.Tests.Communication.Control;

/// <summary>The control plane among threads of one process: the same sockets and threads as among processes.</summary>
[Collection("mpi")]
public sealed class TcpControlPlaneTests
{
    private readonly ConcurrentQueue<(FaultCode Code, string Reason)> _faults = new();

    [Theory, InlineData(1), InlineData(2), InlineData(5)]
    public async Task Every_rank_gets_the_bytes_of_all_in_rank_order(int ranks)
    {
        byte[][][] results = await OnEachRank(ranks, new StallLimits(), plane =>
        {
            IReadOnlyList<byte[]> all = [];
            for (int round = 0; round < 20; round++)
            {
                all = plane.AllGather(Enumerable.Repeat((byte)(plane.Rank + round), plane.Rank * 3000).ToArray());
            }

            return all.ToArray();
        });

        Assert.All(results, all => Assert.Equal(Enumerable.Range(0, ranks).Select(rank => rank * 3000), all.Select(part => part.Length)));
        Assert.All(results, all => Assert.All(all.Index(), part => Assert.All(part.Item, value => Assert.Equal(part.Index + 19, value))));
        Assert.Empty(_faults);
    }

    [Fact]
    public async Task A_rank_that_does_not_answer_is_named()
    {
        var limits = new StallLimits { Operation = TimeSpan.FromSeconds(1), WarmUp = TimeSpan.FromSeconds(1), Beat = TimeSpan.FromMilliseconds(50) };

        FaultException?[] faults = await OnEachRank(3, limits, plane =>
        {
            if (plane.Rank == 1)
            {
                Thread.Sleep(2500);
                return null;
            }

            return Assert.Throws<FaultException>(() => plane.AllGather(new byte[3]));
        });

        Assert.Equal(FaultCode.NoProgress, faults[0]!.Code);
        Assert.Equal(FaultCode.NoProgress, faults[2]!.Code);
        Assert.StartsWith("rank 1 (", faults[2]!.Message, StringComparison.Ordinal);
        Assert.Contains("did not arrive at operation 1 (agreement)", faults[0]!.Message, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Who_waits_for_work_has_no_deadline_and_gets_what_rank_0_brings()
    {
        var limits = new StallLimits { Operation = TimeSpan.FromSeconds(1), WarmUp = TimeSpan.FromSeconds(1), Beat = TimeSpan.FromMilliseconds(50) };

        byte[][] results = await OnEachRank(3, limits, plane =>
        {
            if (plane.Rank == 0)
            {
                Thread.Sleep(2500);
            }

            return plane.AwaitWork(new byte[] { (byte)plane.Rank, 7 });
        });

        Assert.All(results, work => Assert.Equal([0, 7], work));
        Assert.Empty(_faults);
    }

    [Fact]
    public async Task A_connection_without_the_token_is_dropped_and_does_no_harm()
    {
        var invitation = new TaskCompletionSource<byte[]>();
        var stranger = new TaskCompletionSource();
        Task<TcpControlPlane> first = Task.Run(
            () => Connect(0, 2, bytes =>
            {
                invitation.SetResult(bytes);
                return bytes;
            }),
            TestContext.Current.CancellationToken);
        string[] lines = Encoding.UTF8.GetString(await invitation.Task).Split('\n');
        using var socket = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        await socket.ConnectAsync(new IPEndPoint(IPAddress.Parse(lines[3]), int.Parse(lines[2], null)), TestContext.Current.CancellationToken);
        byte[] hello = [20, 0, 0, 0, 1, .. new byte[16], 1, 0, 0, 0];
        await socket.SendAsync(hello, TestContext.Current.CancellationToken);

        int answered = await socket.ReceiveAsync(new byte[16], TestContext.Current.CancellationToken);
        using TcpControlPlane second = Connect(1, 2, _ => invitation.Task.Result);
        using TcpControlPlane zero = await first;

        Assert.Equal(0, answered);
        Task<IReadOnlyList<byte[]>> there = Task.Run(() => second.AllGather(new byte[] { 7 }), TestContext.Current.CancellationToken);
        Assert.Equal([7], zero.AllGather(new byte[] { 5 })[1]);
        Assert.Equal([5], (await there)[0]);
    }

    [Theory]
    [InlineData(false, FaultCode.PeerLost, "rank 1 (b07, pid 4242) is lost: its process ended")]
    [InlineData(true, FaultCode.CommunicationFault, "to rank 1 (b07, pid 4242) sent a frame of -1 bytes")]
    public async Task A_connection_that_ends_or_talks_nonsense_is_a_fault_that_names_the_rank(bool nonsense, FaultCode code, string message)
    {
        byte[] invitation = [];
        using var invited = new ManualResetEventSlim();
        Task<TcpControlPlane> joining = Task.Run(
            () => Connect(0, 2, bytes =>
            {
                invitation = bytes;
                invited.Set();
                return bytes;
            }),
            TestContext.Current.CancellationToken);
        invited.Wait(TestContext.Current.CancellationToken);
        string[] lines = Encoding.UTF8.GetString(invitation).Split('\n');
        using var peer = new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
        await peer.ConnectAsync(new IPEndPoint(IPAddress.Parse(lines[3]), int.Parse(lines[2], null)), TestContext.Current.CancellationToken);
        byte[] place = Encoding.UTF8.GetBytes("b07, pid 4242");
        byte[] hello = [(byte)(20 + place.Length), 0, 0, 0, 1, .. Convert.FromHexString(lines[0]), 1, 0, 0, 0, .. place];
        await peer.SendAsync(hello, TestContext.Current.CancellationToken);
        using TcpControlPlane plane = await joining;

        if (nonsense)
        {
            await peer.SendAsync(new byte[] { 255, 255, 255, 255, 2 }, TestContext.Current.CancellationToken);
        }
        else
        {
            peer.Close();
        }

        FaultException fault = Assert.Throws<FaultException>(() => plane.AllGather(new byte[1]));
        Assert.Equal(code, fault.Code);
        Assert.Contains(message, fault.Message, StringComparison.Ordinal);
        Assert.Single(_faults);
    }

    [Fact]
    public async Task Abort_reaches_every_rank_with_its_code()
    {
        await OnEachRank(3, new StallLimits { Beat = TimeSpan.FromMilliseconds(50) }, plane =>
        {
            if (plane.Rank == 2)
            {
                plane.Abort(FaultCode.BadInput, "a NaN");
                return 0;
            }

            FaultException fault = Assert.Throws<FaultException>(() => plane.AllGather(new byte[1]));
            Assert.Equal((FaultCode.BadInput, "a NaN"), (fault.Code, fault.Message));
            return 0;
        });

        Assert.Contains((FaultCode.BadInput, "a NaN"), _faults);
    }

    [Fact]
    public async Task Entering_and_leaving_allocate_nothing()
    {
        await OnEachRank(2, new StallLimits(), plane =>
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < 1000; i++)
            {
                plane.Enter("all-reduce");
                plane.Leave();
            }

            Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
            return 0;
        });
    }

    private async Task<T[]> OnEachRank<T>(int ranks, StallLimits limits, Func<TcpControlPlane, T> work)
    {
        var invitation = new TaskCompletionSource<byte[]>();
        using var everyone = new Barrier(ranks);
        Task<T>[] tasks = [.. Enumerable.Range(0, ranks).Select(rank => Task.Factory.StartNew(
            () =>
            {
                using TcpControlPlane plane = Connect(rank, ranks, Broadcast, limits);
                T result = work(plane);
                everyone.SignalAndWait();
                return result;

                byte[] Broadcast(byte[] bytes)
                {
                    if (rank == 0)
                    {
                        invitation.SetResult(bytes);
                    }

                    return invitation.Task.Result;
                }
            },
            TestContext.Current.CancellationToken, TaskCreationOptions.LongRunning, TaskScheduler.Default))];
        return await Task.WhenAll(tasks).WaitAsync(TimeSpan.FromSeconds(60), TestContext.Current.CancellationToken);
    }

    private TcpControlPlane Connect(int rank, int size, Func<byte[], byte[]> broadcast, StallLimits? limits = null) => TcpControlPlane.Connect(
        rank, size, onOneNode: true, broadcast, limits ?? new StallLimits(), new Traffic(), (code, reason) => _faults.Enqueue((code, reason)));
}
