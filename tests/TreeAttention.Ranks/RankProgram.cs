using System;
using System.Globalization;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Mpi;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Ranks;

/// <summary>One rank of a test job: joins the world and does what its first argument says.</summary>
internal static class RankProgram
{
    // 1,000 is no multiple of what a vector holds, and every check sends more than that.
    private const int SmallPiece = 1000;

    private static int Main(string[] arguments)
    {
        if (arguments[0] == "bug")
        {
            return BuggyRank.Run(arguments[1]);
        }

        if (arguments[0] == "faulty-step")
        {
            return BuggyRank.RunStep(arguments[1]);
        }

        if (arguments[0] == "undisposed")
        {
            return BuggyRank.LeaveUndisposed();
        }

        if (arguments[0] == "leave-early")
        {
            return BuggyRank.LeaveEarly(arguments[1]);
        }

        if (arguments[0] == "attend")
        {
            return ShardedRank.Run();
        }

        if (arguments[0] == "guest")
        {
            return GuestRank.Run(arguments[1]);
        }

        try
        {
            using var world = MpiWorld.Join(
                LauncherEnvironment.Read(Environment.GetEnvironmentVariable), Environment.GetEnvironmentVariable("TREEATTN_MPI_LIBRARY"), Tell);
            try
            {
                Run(world, arguments);
            }
            catch (Exception error) when (error is CheckFailedException or FaultException)
            {
                Tell($"rank {world.Rank}: {error.Message}");
                world.Abort(error is FaultException fault ? fault.Code : FaultCode.OutsideTolerance);
            }
        }
        catch (FaultException fault)
        {
            Tell(fault.Message);
            return (int)fault.Code;
        }

        return 0;
    }

    private static void Run(MpiWorld world, string[] arguments)
    {
        switch (arguments[0])
        {
            case "hello":
                Say(world, $"{world.Product} {world.BinaryInterface} {world.LibraryFile}, {world.Size} ranks, multithreaded {world.IsMultithreaded}, "
                    + $"oversubscribed {world.IsOversubscribed}, one node {world.SharesOneNode}");
                break;
            case "conform":
                Conform(world);
                break;
            case "latency":
                using (MpiTransport transport = world.CreateTransport())
                {
                    LatencyMeasurement.Print(transport);
                }

                break;
            case "managed-faults":
                ManagedFaults(world);
                break;
            case "exit":
                Exit(world);
                break;
            case "abort":
                AbortFromAnotherThread(world, int.Parse(arguments[1], CultureInfo.InvariantCulture));
                break;
            case "loop":
                WatchedLoop.Run(world, arguments[1..]);
                break;
            default:
                throw new CheckFailedException($"no such thing to do: {arguments[0]}");
        }
    }

    private static void Conform(MpiWorld world)
    {
        foreach (int piece in (int[])[MpiTransport.DefaultPieceBytes, SmallPiece])
        {
            using MpiTransport transport = world.CreateTransport(pieceBytes: piece);
            foreach ((string name, Action<ITransport> run) in TransportChecks.All)
            {
                try
                {
                    run(transport);
                }
                catch (CheckFailedException error)
                {
                    throw new CheckFailedException($"{name}, pieces of {piece}: {error.Message}");
                }

                transport.Barrier();
                Say(world, $"ok {name}");
            }

            PeerMemoryChecks.Rounds(transport, piece == SmallPiece ? 20 : 2000);
            Say(world, "ok peer memory");
        }
    }

    private static void ManagedFaults(MpiWorld world)
    {
        string? nothing = Environment.GetEnvironmentVariable("TREEATTN_NO_SUCH_VARIABLE");
        int zero = nothing?.Length ?? 0;
        Check.Throws<NullReferenceException>(() => Tell($"{nothing!.Length}"), "a null reference");
        Check.Throws<DivideByZeroException>(() => Tell($"{world.Size / zero}"), "a division by zero");
        Say(world, "ok managed faults");
    }

    private static void Exit(MpiWorld world)
    {
        using MpiTransport transport = world.CreateTransport();
        if (world.Rank == world.Size - 1)
        {
            Environment.Exit(0);
        }

        transport.Barrier();
        Tell("passed a barrier that a rank never reached");
    }

    private static void AbortFromAnotherThread(MpiWorld world, int code)
    {
        using MpiTransport transport = world.CreateTransport();
        if (world.Rank == 0)
        {
            new Thread(() =>
            {
                Thread.Sleep(200);
                world.Abort((FaultCode)code);
            }).Start();
        }

        // Rank 0 is inside MPI too when its other thread aborts; the last rank never comes.
        if (world.Rank == 0 || world.Rank != world.Size - 1)
        {
            transport.Barrier();
        }

        Thread.Sleep(Timeout.Infinite);
    }

    private static void Say(MpiWorld world, string line)
    {
        if (world.Rank == 0)
        {
            Console.WriteLine(line);
        }
    }

    private static void Tell(string line) => Console.Error.WriteLine("treeattn: " + line);
}
