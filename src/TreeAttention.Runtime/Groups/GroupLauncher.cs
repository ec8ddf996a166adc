using System;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Nccl;
using TreeAttention.Communication.Staging;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Posix;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Runtime.Groups;

/// <summary>Brings the ranks of a group together, runs the same work on each, and ends them all with one code.</summary>
internal static class GroupLauncher
{
    /// <summary>Runs <paramref name="work"/> once on every rank of this process: on a thread each, or on the one rank that this process is.</summary>
    /// <returns>What rank 0 of this process returned.</returns>
    /// <exception cref="FaultException">The group cannot be formed, or a rank failed.</exception>
    public static FaultCode Run(GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        work = WithMemoryFaults(work);
        TransportKind transport = options.Transport == TransportKind.Auto ? NaturalTransport(environment.Launcher) : options.Transport;
        if (transport == TransportKind.Nccl)
        {
            options = NcclSource.OnGpus(options with { Transport = transport });
        }

        if (transport == TransportKind.Nccl && environment.Launcher.Rendezvous is not null)
        {
            return RendezvousGroup.Run(options, environment, work);
        }

        if (transport == TransportKind.Mpi || (transport == TransportKind.Nccl && environment.Launcher.IsPresent))
        {
            return MpiGroup.Run(options, environment, work);
        }

        if (environment.Launcher is { Size: > 1 } launcher)
        {
            string rank = environment.SpeaksForAll ? "" : $"rank {environment.Rank}: ";
            Refuse(options, environment, new FaultException(
                FaultCode.RanksDisagree,
                $"{rank}{Setting.TransportInProcess} makes its ranks itself, but {launcher.Name} started {launcher.Size} processes. Leave {Setting.Transport} out, "
                + $"or start one process with {Setting.InProcessRanks}."));
        }

        return RunInProcess(options, environment, work);
    }

    /// <summary>Ends all ranks by a fault that this one has before it could join: the others would wait for it. Does not return.</summary>
    /// <param name="options">How long to wait for the others.</param>
    /// <param name="environment">Who launched the process.</param>
    /// <param name="refusal">The fault.</param>
    /// <exception cref="FaultException">Always: the fault of the lowest rank that has one, agreed where the ranks could meet.</exception>
    public static void Refuse(GroupOptions options, ProcessEnvironment environment, FaultException refusal)
    {
        options = options with { Ranks = null, Nodes = null };
        try
        {
            if (environment.Launcher is { Size: > 1, Rendezvous: not null })
            {
                RendezvousGroup.Run(options, environment, _ => refusal.Code, refusal);
            }
            else if (environment.Launcher is { Size: not 1, IsPresent: true })
            {
                MpiGroup.Run(options, environment, _ => refusal.Code, refusal);
            }
        }
        catch (FaultException fault) when (fault is not { IsAgreed: true, Rank: not null })
        {
            // The ranks could not meet: there is no MPI, or no launcher of it, and this rank's own fault is what there is to tell.
        }

        throw new FaultException(refusal.Code, refusal.Message, refusal) { IsAgreed = true };
    }

    internal static int ThreadsOf(GroupOptions options, int ranksOfNode) =>
        options.Threads ?? Math.Max(1, Environment.ProcessorCount / ranksOfNode);

    // A rank that finds no memory where nobody looked for it ends the others with the same code as one that was told so.
    private static Func<AttentionGroup, FaultCode> WithMemoryFaults(Func<AttentionGroup, FaultCode> work) => group =>
    {
        try
        {
            return work(group);
        }
        catch (OutOfMemoryException error)
        {
            throw FaultException.OfHostMemory(error);
        }
    };

    private static TransportKind NaturalTransport(LauncherEnvironment launcher) =>
        launcher.Name == LauncherEnvironment.RendezvousVariable ? TransportKind.Nccl
        : launcher.IsPresent ? TransportKind.Mpi
        : TransportKind.InProcess;

    private static FaultCode RunInProcess(GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        int ranks = options.Ranks ?? 1;
        var results = new FaultCode[ranks];
        var devices = DeviceSource.Open(options, environment, ranks);
        string? nccl = options.Transport == TransportKind.Nccl ? NcclSource.Open(environment) : null;
        string description = (ranks == 1 ? "1 rank in this process" : $"{ranks} in-process ranks") + (nccl is null ? "" : $", {nccl}");
        using var group = InProcessGroup.Create(ranks, options.Nodes, StallLimits.Of(options.StallTimeout));
        group.Run(rank =>
        {
            int threads = ThreadsOf(options, ranks);
            using IDevice device = devices.Create(threads, rank);
            IControlPlane control = group.Controls[rank];
            using NcclTransport? gpus = nccl is null
                ? null
                : NcclSource.Connect(environment, NcclSource.Beside(group.Transports[rank], device, control) with
                {
                    IsAloneInProcess = ranks == 1,
                    LookForFault = group.ThrowIfEnded,
                });
            using DeviceTransport? staged = gpus is null ? DeviceSource.StagingFor(options, group.Transports[rank], device) : null;
            var context = new RankContext((ITransport?)gpus ?? staged ?? (ITransport)group.Transports[rank], device, control) { Door = group.Seats[rank].Door };
            using var member = new AttentionGroup(context, threads, description);
            results[rank] = work(member);
            gpus?.Leave();
        });
        return results[0];
    }
}

/// <summary>The end of a process that a signal asked to go, while its ranks are at work.</summary>
internal static class ProcessEnd
{
    // Launchers kill about a second after the signal; an MPI that has lost its launcher may hang in its abort.
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(0.5);

    /// <summary>Removes unfinished files and ends the process, and with it the MPI job that it is a rank of. Does not return.</summary>
    public static void Leave(FaultCode code)
    {
        UnfinishedFiles.Discard();
        var guard = new Thread(() =>
        {
            Thread.Sleep(_limit);
            LibC.ExitNow((int)code);
        })
        { IsBackground = true, Name = "end guard" };
        guard.Start();
        Environment.Exit((int)code);
    }
}
