using TreeAttention.Communication;
using TreeAttention.Distributed;

namespace TreeAttention.Runtime;

/// <summary>Connects the GPUs of a group by NCCL, by the group's options and the process's environment.</summary>
internal static class NcclSource
{
    /// <summary>What users can do who have no GPU.</summary>
    internal const string WayOut = "do without NCCL and with --device cpu: --transport mpi under mpiexec, --transport in-process alone";

    private const string Library = "libnccl.so.2";

    /// <summary>Loads NCCL.</summary>
    /// <returns>What it is, for descriptions.</returns>
    /// <exception cref="FaultException">There is none, or it is too old (69).</exception>
    internal static string Open(ProcessEnvironment environment) => NcclTransport.LoadLibrary(
        environment.NcclLibrary is { } named ? [named]
        : environment.Cuda == DeviceSource.Emulated ? [environment.CudaLibrary ?? DeviceSource.EmulatedLibrary()]
        : [Library]);

    /// <summary>Connects this rank. Every rank calls it.</summary>
    internal static NcclTransport Connect(ProcessEnvironment environment, NcclSetUp setUp) =>
        NcclTransport.Connect(setUp with { HostId = environment.NcclHostId, MayShareGpus = environment.NcclSharesGpus });

    /// <summary>What a rank brings whose host memory another transport moves: that one knows the nodes, and gives the memory that ranks of a node share.</summary>
    internal static NcclSetUp Beside(ITransport host, IDevice device, IControlPlane control) =>
        new((IStreamDevice)device, control, host.Nodes, host.Traffic) { SharePeerMemory = host.SharePeerMemory };

    /// <summary>The options of a group that NCCL connects: it computes on GPUs.</summary>
    /// <exception cref="FaultException">It is asked to compute on the CPU (2).</exception>
    internal static GroupOptions OnGpus(GroupOptions options) => options.Device == DeviceKind.Cpu
        ? throw new FaultException(
            FaultCode.CommandLine,
            "--transport nccl connects GPUs, but --device cpu computes on none. Give --device cuda, or --transport mpi or in-process.")
        { IsAgreed = true }
        : options with { Device = DeviceKind.Cuda };
}
