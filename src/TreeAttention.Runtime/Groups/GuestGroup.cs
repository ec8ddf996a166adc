using System;
using System.Linq;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Mpi;
using TreeAttention.Communication.Nccl;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Runtime.Groups;

/// <summary>A rank's part in a group over a communicator of the caller's: formed, used and left on the caller's own threads.</summary>
/// <remarks>
/// Nothing of the caller's is begun or ended. A fault ends the group alone: every rank throws it, where a launcher's group would
/// end the job; what to do about the job is the caller's to say.
/// </remarks>
internal static class GuestGroup
{
    /// <summary>Joins over a communicator of MPI. Every rank of it calls this.</summary>
    internal static AttentionGroup JoinMpi(nint communicator, GroupOptions options, ProcessEnvironment environment) => Form(options, (fault, owned) =>
    {
        options = options.Transport == TransportKind.Nccl ? NcclSource.OnGpus(options) : options;
        MpiWorld world = owned.Add(() => MpiWorld.Enter(communicator, environment.MpiLibrary, fault.ThrowIfEnded));
        RequireSize(options, world.Size);
        MpiTransport transport = owned.Add(() => world.CreateTransport(options.Nodes));
        TcpControlPlane control = owned.Add(() => TcpControlPlane.Connect(
            world.Rank, world.Size, world.SharesOneNode, world.Broadcast, LimitsOf(options), transport.Traffic, fault.Keep));
        MpiParts parts = owned.Add(() => new MpiParts(world, transport, control, options, environment));
        return new Guest(parts.Context, parts.Threads, parts.Description, parts.Leave, world.Abandon);
    });

    /// <summary>Joins over a communicator of NCCL, on the GPU that it is on. Every rank of it calls this.</summary>
    internal static AttentionGroup JoinNccl(nint communicator, GroupOptions options, ProcessEnvironment environment) => Form(options, (fault, owned) =>
    {
        options = NcclSource.OnGpus(options with { Transport = TransportKind.Nccl });
        string nccl = NcclSource.Open(environment);
        options = options with { Gpu = NcclHost.GpuOf(communicator) };
        IDevice device = owned.Add(() => DeviceSource.Open(options, environment, 1).Create(1, 0));
        using var host = new NcclHost((IStreamDevice)device, communicator, fault.ThrowIfEnded);
        RequireSize(options, host.Size);
        long[] machines = host.Gather(RendezvousGroup.MachineNumber());
        var traffic = new Traffic();
        bool onOneMachine = machines.Distinct().Count() == 1;
        TcpControlPlane control = owned.Add(() => TcpControlPlane.Connect(
            host.Rank, host.Size, onOneMachine, host.Broadcast, LimitsOf(options), traffic, fault.Keep));
        int[] nodes = [.. options.Nodes ?? RendezvousGroup.NodesOf(control)];
        NcclTransport transport = owned.Add(() => host.Connect(new NcclSetUp((IStreamDevice)device, control, nodes, traffic)
        {
            SharePeerMemory = bytes => onOneMachine ? NodeMemory.Share(control, bytes) : null,
        }));
        int threads = GroupLauncher.ThreadsOf(options, machines.Count(machine => machine == machines[host.Rank]));
        return new Guest(new RankContext(transport, device, control), threads, $"{host.Size} ranks, {nccl}", transport.Leave, () => { });
    });

    private static AttentionGroup Form(GroupOptions options, Func<GuestFault, OwnedParts, Guest> make)
    {
        options.RequireValid();
        var fault = new GuestFault();
        OwnedParts? unfinished = new();
        try
        {
            OwnedParts owned = unfinished;
            Guest guest = make(fault, owned);
            var group = new AttentionGroup(guest.Context, guest.Threads, guest.Description);
            group.LeaveBy(error => Leave(guest, fault, owned, error));
            unfinished = null;
            return group;
        }
        finally
        {
            unfinished?.Dispose();
        }
    }

    private static void Leave(Guest guest, GuestFault fault, OwnedParts owned, Exception? error)
    {
        using (owned)
        {
            if (error is null && !fault.HasEnded)
            {
                Action leave = guest.Context.Control.LeaveTogether() ? guest.Leave : guest.Abandon;
                leave();
                return;
            }

            guest.Abandon();
            if (!fault.HasEnded)
            {
                guest.Context.Control.Abort((error as FaultException)?.Code ?? FaultCode.Bug, error!.Message);
            }
        }
    }

    private static StallLimits LimitsOf(GroupOptions options) => StallLimits.Of(options.StallTimeout);

    private static void RequireSize(GroupOptions options, int size)
    {
        if ((options.Ranks ?? size) != size || (options.Nodes?.Count ?? size) != size)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"The communicator has {size} ranks, but the options say {options.Ranks ?? size} and name the nodes of {options.Nodes?.Count ?? size}. Leave both out.")
            { IsAgreed = true };
        }
    }

    private sealed record Guest(RankContext Context, int Threads, string Description, Action Leave, Action Abandon);
}

/// <summary>What ended a group over a communicator of the caller's: waits of this rank throw it, and the caller's job goes on.</summary>
internal sealed class GuestFault
{
    private FaultException? _fault;

    /// <summary>The group was ended.</summary>
    internal bool HasEnded => Volatile.Read(ref _fault) is not null;

    /// <summary>Keeps the first fault; from any thread.</summary>
    internal void Keep(FaultCode code, string reason) => Interlocked.CompareExchange(ref _fault, new FaultException(code, reason), null);

    /// <summary>Throws when the group was ended.</summary>
    internal void ThrowIfEnded()
    {
        if (Volatile.Read(ref _fault) is { } fault)
        {
            throw new FaultException(fault.Code, $"The group has ended: {fault.Message}", fault);
        }
    }
}
