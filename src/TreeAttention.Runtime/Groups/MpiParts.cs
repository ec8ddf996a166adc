using System;
using System.Linq;
using TreeAttention.Communication;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>What a rank of an MPI world computes with, and how it talks: its device, and MPI or NCCL between the devices.</summary>
internal sealed class MpiParts : IDisposable
{
    private readonly OwnedParts _owned = new();
    private readonly NcclTransport? _gpus;
    private readonly ITransport? _bridge;

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
            _bridge = _gpus is null ? DeviceSource.BridgeFor(transport, device, world.IsCudaAware, environment.MpiCuda) : null;
            Context = new RankContext(_gpus ?? _bridge ?? transport, device, control);
            Description = $"{world.Size} ranks under {world.Product} ({world.LibraryFile})"
                + (nccl is not null ? $", {nccl}" : _bridge is DirectTransport ? ", device memory handed to MPI" : "");
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
