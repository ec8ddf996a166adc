using System;
using TreeAttention.Communication;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Connects the GPUs of a group by NCCL, by the group's options and the process's environment.</summary>
internal static class NcclSource
{
    private const string Library = "libnccl.so.2";

    /// <summary>Loads NCCL.</summary>
    /// <returns>What it is, for descriptions.</returns>
    /// <exception cref="FaultException">There is none, or it is too old (69).</exception>
    internal static string Open(ProcessEnvironment environment) => NcclTransport.LoadLibrary(
        environment.NcclLibrary is { } named ? [named]
        : environment.Cuda == DeviceSource.Emulated ? [environment.CudaLibrary ?? DeviceSource.EmulatedLibrary()]
        : [Library]);

    /// <summary>Connects this rank. Every rank calls it.</summary>
    /// <param name="device">The rank's GPU.</param>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="host">Moves host memory among the same ranks: it knows the nodes, and gives the memory that ranks of a node share.</param>
    /// <param name="environment">What NCCL is told by variables.</param>
    /// <param name="lookForFault">Throws when another rank has ended the group.</param>
    internal static NcclTransport Connect(
        IDevice device, IControlPlane control, ITransport host, ProcessEnvironment environment, Action lookForFault) =>
        NcclTransport.Connect(new NcclSetUp((IStreamDevice)device, control, host.Nodes, host.Traffic)
        {
            HostId = environment.NcclHostId,
            MayShareGpus = environment.NcclSharesGpus,
            SharePeerMemory = host.SharePeerMemory,
            LookForFault = lookForFault,
        });

    /// <summary>The options of a group that NCCL connects: it computes on GPUs.</summary>
    /// <exception cref="FaultException">It is asked to compute on the CPU (2).</exception>
    internal static GroupOptions OnGpus(GroupOptions options) => options.Device == DeviceKind.Cpu
        ? throw new FaultException(
            FaultCode.CommandLine,
            "--transport nccl connects GPUs, but --device cpu computes on none. Give --device cuda, or --transport mpi or in-process.")
        { IsAgreed = true }
        : options with { Device = DeviceKind.Cuda };
}
