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
        using var world = MpiWorld.Join(environment.Launcher, environment.MpiLibrary, Warn);
        try
        {
            return RunOn(world, options, work);
        }
        catch (FaultException fault) when (fault.IsAgreed)
        {
            throw;
        }
        catch (Exception error)
        {
            FaultCode code = (error as FaultException)?.Code ?? FaultCode.Bug;
            string message = error is FaultException ? error.Message : error.ToString();
            Warn($"rank {world.Rank} ({world.Hosts[world.Rank]}, pid {Environment.ProcessId}): {message}");
            world.Abort(code);
            throw;
        }
    }

    private static FaultCode RunOn(MpiWorld world, GroupOptions options, Func<AttentionGroup, FaultCode> work)
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

        using MpiTransport transport = world.CreateTransport();
        using IControlPlane control = null!;
        int ranksOfNode = world.Nodes.Count(node => node == world.Nodes[world.Rank]);
        using IDevice device = GroupLauncher.CreateDevice(options, ranksOfNode);
        var context = new RankContext(transport, device, control);
        return work(new AttentionGroup(context, transport.Nodes, $"{world.Size} ranks under {world.Product} ({world.LibraryFile})"));
    }

    private static void Warn(string message) => Console.Error.WriteLine($"treeattn: {message}");
}
