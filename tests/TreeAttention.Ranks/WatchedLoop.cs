using System;
using System.Collections.Generic;
using System.Globalization;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Mpi;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Ranks;

/// <summary>A job under the control plane that works on until something ends it: what the fault tests kill, stop and slow down.</summary>
internal static class WatchedLoop
{
    /// <summary>Arguments: stall time-out in seconds (0: nobody watches), rounds (0: for ever), and what one rank does: none, slow, compute, spin.</summary>
    internal static void Run(MpiWorld world, string[] arguments)
    {
        double seconds = double.Parse(arguments[0], CultureInfo.InvariantCulture);
        int rounds = int.Parse(arguments[1], CultureInfo.InvariantCulture);
        string oddity = arguments.Length > 2 ? arguments[2] : "none";
        var limit = TimeSpan.FromSeconds(Math.Max(seconds, 1));
        var limits = new StallLimits { Operation = limit, WarmUp = limit, IsWatching = seconds > 0 };
        using MpiTransport transport = world.CreateTransport();
        using var control = TcpControlPlane.Connect(
            world.Rank, world.Size, world.SharesOneNode, world.Broadcast, limits, transport.Traffic, (code, reason) => End(world, code, reason));
        RequireAgreement(control);
        using IPeerMemory? peers = transport.SharePeerMemory(4096);
        Check.That(peers != null, "the ranks of one machine share no memory");
        Console.WriteLine($"rank {world.Rank} pid {Environment.ProcessId}");
        using var memory = new HostMemory(4 * 1024, ElementType.Float32);
        for (int round = 0; rounds == 0 || round < rounds; round++)
        {
            if (world.Rank == world.Size - 1 && round == 20)
            {
                BeOdd(control, oddity, limit);
            }

            control.Enter("all-reduce");
            transport.AllReduce(memory.Region, ReduceOperation.Max);
            control.Leave();
            Thread.Sleep(5);
        }

        RequireAgreement(control);
        Check.That(transport.Traffic.ControlBytes > 0, "control bytes are not counted");
        if (world.Rank == 0)
        {
            Console.WriteLine("ok loop");
        }
    }

    private static void BeOdd(TcpControlPlane control, string oddity, TimeSpan limit)
    {
        switch (oddity)
        {
            case "slow":
                // Twice the limit altogether, but the state changes all the time.
                for (int i = 0; i < 8; i++)
                {
                    control.Enter("loading");
                    Thread.Sleep(limit / 4);
                    control.Leave();
                }

                break;
            case "compute":
                control.Enter(StallLimits.ComputeOperation);
                Thread.Sleep(limit * 2);
                control.Leave();
                break;
            case "spin":
                Thread.Sleep(Timeout.Infinite);
                break;
            case "throw":
                throw new FaultException(FaultCode.BadInput, "a fault of one rank");
        }
    }

    private static void RequireAgreement(TcpControlPlane control)
    {
        for (int i = 0; i < 3; i++)
        {
            byte[] mine = new byte[control.Rank * 1000];
            Array.Fill(mine, (byte)(control.Rank + i));
            IReadOnlyList<byte[]> all = control.AllGather(mine);
            Check.Equal(control.Size, all.Count, "parts of an agreement");
            for (int rank = 0; rank < all.Count; rank++)
            {
                Check.Equal(rank * 1000, all[rank].Length, "length of a part");
                Check.That(all[rank].AsSpan().IndexOfAnyExcept((byte)(rank + i)) < 0, "a part has other bytes");
            }
        }
    }

    private static void End(MpiWorld world, FaultCode code, string reason)
    {
        Console.Error.WriteLine($"treeattn: rank {world.Rank}: {reason}");
        world.Abort(code);
    }
}
