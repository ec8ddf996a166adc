using System;
using System.Linq;
using TreeAttention.Communication;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>A group whose ranks are the processes of an MPI job; this process is one of them.</summary>
internal static class MpiGroup
{
    /// <summary>Joins the job, runs the work, leaves. A fault of this rank alone ends the whole job with its code.</summary>
    public static FaultCode Run(GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        using MpiWorld world = Join(environment);
        return Guarded(world, () => RunOn(world, options, environment, work));
    }

    private static FaultCode Guarded(MpiWorld world, Func<FaultCode> work)
    {
        try
        {
            return work();
        }
        catch (FaultException fault) when (fault.IsAgreed)
        {
            throw;
        }
        catch (Exception error)
        {
            FaultCode code = (error as FaultException)?.Code ?? FaultCode.Bug;
            string message = error is FaultException ? error.Message : error.ToString();
            End(world, code, message);
            throw;
        }
    }

    // A process that could not join knows no other rank, but what keeps it out keeps all out.
    private static MpiWorld Join(ProcessEnvironment environment)
    {
        try
        {
            return MpiWorld.Join(environment.Launcher, environment.MpiLibrary, Warn);
        }
        catch (FaultException fault) when (fault.Code is FaultCode.RanksDisagree or FaultCode.Unavailable)
        {
            throw new FaultException(fault.Code, fault.Message, fault) { IsAgreed = true };
        }
    }

    private static FaultCode RunOn(MpiWorld world, GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        if (options.Ranks is { } ranks && ranks != world.Size)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"--ranks {ranks}, but the launcher started {world.Size} processes, and each is one rank. Leave --ranks out.")
            { IsAgreed = true };
        }

        if (options.Nodes is { } nodes && nodes.Count != world.Size)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"--nodes names the node of {nodes.Count} ranks, but there are {world.Size}: one for each rank.")
            { IsAgreed = true };
        }

        using MpiTransport transport = world.CreateTransport(options.Nodes);
        var limits = new StallLimits { Operation = options.StallTimeout };
        using var control = TcpControlPlane.Connect(
            world.Rank, world.Size, world.SharesOneNode, world.Broadcast, limits, transport.Traffic, (code, reason) => End(world, code, reason));

        // The job ends while this rank's control plane is still open: ranks that wait for it there would report it lost, with another code.
        return Guarded(world, () => RunWith(world, transport, control, options, environment, work));
    }

    private static FaultCode RunWith(
        MpiWorld world, MpiTransport transport, TcpControlPlane control, GroupOptions options, ProcessEnvironment environment,
        Func<AttentionGroup, FaultCode> work)
    {
        int ranksOfNode = world.Nodes.Count(node => node == world.Nodes[world.Rank]);
        int threads = GroupLauncher.ThreadsOf(options, ranksOfNode);
        int rankOfNode = world.Nodes.Take(world.Rank).Count(node => node == world.Nodes[world.Rank]);
        using IDevice device = RankAgreement.Together(control, () => DeviceSource.Open(options, environment, ranksOfNode).Create(threads, rankOfNode));
        string? nccl = options.Transport == TransportKind.Nccl ? RankAgreement.Together(control, () => NcclSource.Open(environment)) : null;
        using NcclTransport? gpus = nccl is null ? null : NcclSource.Connect(environment, NcclSource.Beside(transport, device, control) with { IsAloneInProcess = true });
        using ITransport? bridge = gpus is null ? DeviceSource.BridgeFor(transport, device, world.IsCudaAware, environment.MpiCuda) : null;
        var context = new RankContext(gpus ?? bridge ?? transport, device, control);
        string description = $"{world.Size} ranks under {world.Product} ({world.LibraryFile})"
            + (nccl is not null ? $", {nccl}" : bridge is DirectTransport ? ", device memory handed to MPI" : "");
        using var group = new AttentionGroup(context, threads, description);
        FaultCode code = Guarded(world, () => work(group)); // before a device that may hang is disposed of
        gpus?.Leave();
        return code;
    }

    private static void End(MpiWorld world, FaultCode code, string reason)
    {
        Warn($"rank {world.Rank} ({world.Hosts[world.Rank]}, pid {Environment.ProcessId}): {reason}");
        world.Abort(code);
    }

    private static void Warn(string message) => Console.Error.WriteLine($"treeattn: {message}");
}
