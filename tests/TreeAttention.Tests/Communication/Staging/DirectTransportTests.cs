using System;
using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Staging;

/// <summary>Transports that are given device addresses. An emulated GPU's memory is the host's, so every transport reaches it.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class DirectTransportTests : DeviceTransportConformance
{
    [Fact]
    public void Work_that_is_enqueued_is_done_before_its_memory_is_handed_over() => RunOnEachRank(2, (transport, device, _) =>
    {
        Region region = Filled(device, transport.Rank + 1);
        Region copy = Filled(device, 0);
        device.Synchronize();

        device.Copy(region, copy); // an emulated stream does it only when someone waits
        transport.AllReduce(copy, ReduceOperation.Sum);

        Assert.Equal(3, Only(device, copy));
    });

    private protected override void RunOnEachRank(int ranks, Action<ITransport, IDevice, IControlPlane> body)
    {
        CudaPlatform platform = EmulatedCuda.Platform;
        using var group = InProcessGroup.Create(ranks);
        group.Run(rank =>
        {
            using var device = new CudaDevice(platform, rank);
            using var transport = new DeviceTransport(group.Transports[rank], device, directBytes: 1 << 30);
            body(transport, device, group.Controls[rank]);
        });
    }
}
