using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cuda;
using TreeAttention.Runtime.Groups;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>What stands between MPI and a device: what MPI says of itself, unless the user says otherwise.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class BridgeTests
{
    [Theory]
    [InlineData(true, null, true), InlineData(false, null, false)]
    [InlineData(true, "staged", false), InlineData(false, "direct", true)]
    public void A_GPU_gets_the_bridge_that_the_MPI_can_use(bool isCudaAware, string? choice, bool isDirect)
    {
        using var group = InProcessGroup.Create(1);
        using CudaDevice device = EmulatedCuda.CreateDevice();

        using DeviceTransport? bridge = DeviceSource.BridgeFor(new GroupOptions(), group.Transports[0], device, isCudaAware, choice);

        Assert.Equal(isDirect, bridge!.IsDirect);
    }

    [Fact]
    public void A_CPU_needs_none_and_a_choice_that_is_none_is_refused()
    {
        using var group = InProcessGroup.Create(1);
        using var device = new CpuDevice(1);

        Assert.Null(DeviceSource.BridgeFor(new GroupOptions(), group.Transports[0], device, isCudaAware: true, "direct"));
        FaultException fault = Assert.Throws<FaultException>(() => DeviceSource.BridgeFor(new GroupOptions(), group.Transports[0], device, isCudaAware: true, "maybe"));

        Assert.Equal((FaultCode.CommandLine, true), (fault.Code, fault.IsAgreed));
    }
}
