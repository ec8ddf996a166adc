using System;
using System.Diagnostics.Tracing;
using System.Linq;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Mpi;
using TreeAttention.Communication.Nccl;
using TreeAttention.Communication.Staging;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Runtime.Groups;

/// <summary>A group whose ranks are the processes of an MPI job; this process is one of them.</summary>
internal static class MpiGroup
{
    /// <summary>Joins the job, runs the work, leaves. A fault of this rank alone ends the whole job with its code.</summary>
    /// <param name="options">What the group is made of.</param>
    /// <param name="environment">The process's.</param>
    /// <param name="work">The rank's work.</param>
    /// <param name="refusal">Why this rank cannot take part: it joins all the same, since the others wait for it, and ends all ranks by it.</param>
    public static FaultCode Run(
        GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work, FaultException? refusal = null)
    {
        using var guard = new JoinGuard(environment.Launcher, FirstAgreement.JoinLimit(options, refusal), message => options.Tell(EventLevel.Critical, message), refusal);
        using MpiWorld world = Join(options, environment, guard);
        try
        {
            FaultCode code = Guarded(world, options, () => RunOn(world, guard, options, environment, work, refusal));
            world.EndsWith(code, null);
            return code;
        }
        catch (FaultException fault)
        {
            world.EndsWith(fault.Code, fault.Message);
            throw;
        }
    }

    private static FaultCode Guarded(MpiWorld world, GroupOptions options, Func<FaultCode> work)
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
            End(world, options, code, message);
            throw;
        }
    }

    // A process that could not join knows no other rank, but what keeps it out keeps all out.
    private static MpiWorld Join(GroupOptions options, ProcessEnvironment environment, JoinGuard guard)
    {
        try
        {
            return MpiWorld.Join(environment.Launcher, environment.MpiLibrary, message => options.Tell(EventLevel.Critical, message), guard);
        }
        catch (FaultException fault) when (fault.Code is FaultCode.RanksDisagree or FaultCode.Unavailable)
        {
            throw new FaultException(fault.Code, fault.Message, fault) { IsAgreed = true };
        }
    }

    private static FaultCode RunOn(
        MpiWorld world, JoinGuard guard, GroupOptions options, ProcessEnvironment environment, Func<AttentionGroup, FaultCode> work,
        FaultException? refusal)
    {
        using MpiTransport transport = world.CreateTransport(options.Nodes?.Count == world.Size ? options.Nodes : null);
        StallLimits limits = StallLimits.Of(options.StallTimeout) with { Join = options.JoinTimeout };
        guard.Enter("for all ranks to connect");
        using var control = TcpControlPlane.Connect(
            world.Rank, world.Size, world.SharesOneNode, world.Broadcast, limits, transport.Traffic, (code, reason) => End(world, options, code, reason));

        // The job ends while this rank's control plane is still open: ranks that wait for it there would report it lost, with another code.
        return Guarded(world, options, () =>
        {
            FirstAgreement.Settle(control, options, environment, refusal);
            guard.Dispose();
            return RunWith(world, transport, control, options, environment, work);
        });
    }

    private static FaultCode RunWith(
        MpiWorld world, MpiTransport transport, TcpControlPlane control, GroupOptions options, ProcessEnvironment environment,
        Func<AttentionGroup, FaultCode> work)
    {
        using var parts = new MpiParts(world, transport, control, options, environment);
        using var group = new AttentionGroup(parts.Context, parts.Threads, parts.Description);
        FaultCode code = Guarded(world, options, () => work(group)); // before a device that may hang is disposed of
        if (control.LeaveTogether())
        {
            parts.Leave();
        }
        else
        {
            world.AbandonJob();
        }

        return code;
    }

    private static void End(MpiWorld world, GroupOptions options, FaultCode code, string reason)
    {
        options.Tell(EventLevel.Critical, $"rank {world.Rank} ({world.Hosts[world.Rank]}, pid {Environment.ProcessId}): {reason}");
        world.Abort(code);
    }
}

/// <summary>What a rank of an MPI world computes with, and how it talks: its device, and MPI or NCCL between the devices.</summary>
internal sealed class MpiParts : IDisposable
{
    private readonly OwnedParts _owned = new();
    private readonly NcclTransport? _gpus;
    private readonly DeviceTransport? _bridge;

    /// <summary>Makes the parts. Every rank calls it.</summary>
    /// <exception cref="FaultException">A rank has no device, or NCCL is missing or failed.</exception>
    internal MpiParts(MpiWorld world, MpiTransport transport, IControlPlane control, GroupOptions options, ProcessEnvironment environment)
    {
        int ranksOfNode = world.Nodes.Count(node => node == world.Nodes[world.Rank]);
        int rankOfNode = world.Nodes.Take(world.Rank).Count(node => node == world.Nodes[world.Rank]);
        Threads = GroupLauncher.ThreadsOf(options, ranksOfNode);
        try
        {
            var devices = DeviceSource.Agree(options, environment, ranksOfNode, control);
            IDevice device = _owned.Add(() => RankAgreement.Together(control, () => devices.Create(Threads, rankOfNode)));
            string? nccl = options.Transport == TransportKind.Nccl ? RankAgreement.Together(control, () => NcclSource.Open(environment)) : null;
            _gpus = nccl is null ? null : _owned.Add(
                () => NcclSource.Connect(environment, NcclSource.Beside(transport, device, control) with { IsAloneInProcess = !world.IsGuest }));
            _bridge = _gpus is null ? DeviceSource.BridgeFor(options, transport, device, world.IsCudaAware, environment.MpiCuda) : null;
            Context = new RankContext(_gpus ?? (ITransport?)_bridge ?? transport, device, control);
            Description = $"{world.Size} ranks under {world.Product} ({world.LibraryFile})"
                + (nccl is not null ? $", {nccl}" : _bridge is DeviceTransport { IsDirect: true } ? ", device memory handed to MPI" : "");
        }
        catch
        {
            _owned.Dispose();
            throw;
        }
    }

    internal RankContext Context { get; }

    internal int Threads { get; }

    internal string Description { get; }

    /// <summary>Leaves in order: every rank calls it when its work is done.</summary>
    internal void Leave() => _gpus?.Leave();

    /// <inheritdoc/>
    public void Dispose()
    {
        _bridge?.Dispose();
        _owned.Dispose();
    }
}
