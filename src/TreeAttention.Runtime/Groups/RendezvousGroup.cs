using System;
using System.Diagnostics.Tracing;
using System.Linq;
using System.Text;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Nccl;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Posix;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Runtime.Groups;

/// <summary>A group whose ranks are processes that no MPI connects: they meet by TCP, and NCCL moves the data.</summary>
internal static class RendezvousGroup
{
    /// <summary>Joins the others, runs the work, leaves. A fault of this rank alone ends all with its code.</summary>
    public static FaultCode Run(
        GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work, FaultException? refusal = null)
    {
        (int rank, int size) = PlaceOf(environment.Launcher);
        refusal ??= FirstAgreement.Misfit(options, rank, size);
        TimeSpan limit = FirstAgreement.JoinLimit(options, refusal);
        var rendezvous = new TcpRendezvous(environment.Launcher.Rendezvous!, Visitor(environment.Launcher, rank, size), limit);
        var traffic = new Traffic();
        StallLimits limits = StallLimits.Of(options.StallTimeout) with { Join = limit };
        using TcpControlPlane control = Connect();
        try
        {
            FirstAgreement.Settle(control, options, environment, refusal);
            return RunOn(control, traffic, options, environment, work);
        }
        catch (Exception error) when (error is not FaultException { IsAgreed: true })
        {
            control.Abort((error as FaultException)?.Code ?? FaultCode.Bug, error is FaultException ? error.Message : error.ToString());
            throw;
        }

        TcpControlPlane Connect()
        {
            try
            {
                return TcpControlPlane.Connect(
                    rank, size, rendezvous.IsLoopback, rendezvous.Broadcast, limits, traffic, (code, reason) => End(rank, options, code, reason));
            }
            catch (FaultException) when (refusal is not null)
            {
                throw refusal;
            }
        }
    }

    private static FaultCode RunOn(
        TcpControlPlane control, Traffic traffic, GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work)
    {
        int[] machines = NodesOf(control);
        int[] neighbours = [.. Enumerable.Range(0, control.Size).Where(rank => machines[rank] == machines[control.Rank])];
        int threads = GroupLauncher.ThreadsOf(options, neighbours.Length);
        var devices = DeviceSource.Agree(options, environment, neighbours.Length, control);
        using IDevice device = RankAgreement.Together(control, () => devices.Create(threads, Array.IndexOf(neighbours, control.Rank)));
        string nccl = RankAgreement.Together(control, () => NcclSource.Open(environment));
        bool onOneMachine = neighbours.Length == control.Size;
        using NcclTransport gpus = NcclSource.Connect(environment, new NcclSetUp((IStreamDevice)device, control, options.Nodes ?? machines, traffic)
        {
            IsAloneInProcess = true,
            SharePeerMemory = bytes => onOneMachine ? NodeMemory.Share(control, bytes) : null,
        });
        using var group = new AttentionGroup(new RankContext(gpus, device, control), threads, $"{control.Size} ranks, {nccl}");
        FaultCode code = work(group);
        if (control.LeaveTogether())
        {
            gpus.Leave();
        }

        return code;
    }

    private static (int Rank, int Size) PlaceOf(LauncherEnvironment launcher) => launcher is { Rank: { } rank, Size: { } size } && rank < size
        ? (rank, size)
        : throw new FaultException(
            FaultCode.CommandLine,
            $"The ranks are to meet at {launcher.Rendezvous}, but this is rank {launcher.Rank ?? -1} of {launcher.Size ?? -1} (-1: unknown): set TREEATTN_RANK "
            + "(0 to size - 1) and TREEATTN_WORLD_SIZE, or start by srun.")
        { IsAgreed = !(launcher.Rank >= launcher.Size) }; // a place behind the last is this process's fault alone: no rank 0 tells it

    // What the program was called is left out: a rank may have it from another place than the others.
    private static RendezvousVisitor Visitor(LauncherEnvironment launcher, int rank, int size)
    {
        string[] like = [Environment.CurrentDirectory, .. Environment.GetCommandLineArgs()[1..]];
        long job = launcher.Job is { } name ? NumberOf(name) | 1 : 0;
        return new RendezvousVisitor(rank, size, job, NumberOf(string.Join('\0', like)));
    }

    private static long NumberOf(string text) => (long)(ulong)Fingerprint.Of(Encoding.UTF8.GetBytes(text));

    /// <summary>The same number on the ranks of a machine, and almost surely another on others.</summary>
    internal static long MachineNumber() => NumberOf(Environment.MachineName);

    /// <summary>The node of each rank: ranks whose machine has the same name share it.</summary>
    internal static int[] NodesOf(IControlPlane control) =>
        NodeNumbers.Of(control.AllGather(Encoding.UTF8.GetBytes(Environment.MachineName)).Select(Encoding.UTF8.GetString));

    private static void End(int rank, GroupOptions options, FaultCode code, string reason)
    {
        options.Tell(EventLevel.Critical, $"rank {rank} ({Environment.MachineName}, pid {Environment.ProcessId}): {reason}");
        UnfinishedFiles.Discard();
        LibC.ExitNow((int)code);
    }
}
