using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Staging;

/// <summary>Transports of host memory that move device memory through page-locked memory.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class StagedTransportTests : DeviceTransportConformance
{
    private protected override void RunOnEachRank(int ranks, Action<ITransport, IDevice, IControlPlane> body)
    {
        CudaPlatform platform = EmulatedCuda.Platform;
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank % 2); // two GPUs, one of them shared where there are three ranks
            using var transport = new DeviceTransport(group.Transports[rank], device);
            body(transport, device, group.Controls[rank]);
        });
    }
}
