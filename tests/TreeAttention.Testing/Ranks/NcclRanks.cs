using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Nccl;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Devices;

namespace TreeAttention.Testing.Ranks;

/// <summary>In-process ranks, each with an emulated GPU of its own, connected by the emulated NCCL.</summary>
internal static class NcclRanks
{
    /// <summary>Runs one thread for each rank; ranks leave in order when all are done, or end as after a fault.</summary>
    /// <param name="ranks">How many.</param>
    /// <param name="body">What each does.</param>
    /// <param name="leaves">They leave in order.</param>
    /// <param name="areAlone">They say that each is alone in its process, so that steps are captured: the emulation has no need of it.</param>
    internal static void Run(
        int ranks, Action<NcclTransport, CudaDevice, IControlPlane> body, bool leaves = true, bool areAlone = false)
    {
        CudaPlatform platform = EmulatedCuda.Platform;
        NcclTransport.LoadLibrary([EmulatedCuda.Library]);
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank);
            using var transport = NcclTransport.Connect(SetUpOf(group, rank, device) with { IsAloneInProcess = areAlone });
            body(transport, device, group.Controls[rank]);
            if (leaves)
            {
                transport.Leave();
            }
        });
    }

    /// <summary>What a rank of an in-process group brings.</summary>
    internal static NcclSetUp SetUpOf(InProcessGroup group, int rank, CudaDevice device) =>
        new(device, group.Controls[rank], group.Transports[rank].Nodes, group.Transports[rank].Traffic)
        {
            SharePeerMemory = group.Transports[rank].SharePeerMemory,
            LookForFault = group.ThrowIfEnded,
        };
}
