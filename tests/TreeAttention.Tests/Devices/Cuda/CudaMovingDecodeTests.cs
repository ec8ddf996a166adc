using TreeAttention.Communication.InProcess;
using TreeAttention.Communication.Staging;
using TreeAttention.Devices.Cuda;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Rings and gather over a growing cache, between GPUs.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaMovingDecodeTests
{
    [Theory, InlineData(AttentionAlgorithm.Ring), InlineData(AttentionAlgorithm.Gather)]
    public void Whatever_happens_to_the_cache_staged_keys_agree_with_the_tree(AttentionAlgorithm algorithm)
    {
        _ = EmulatedCuda.Platform;
        using var group = InProcessGroup.Create(3);
        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice();
            using var transport = new DeviceTransport(group.Transports[rank], device);
            Assert.True(GrowingStory.Play(new RankContext(transport, device, group.Controls[rank]), algorithm) > 0);
        });
    }

    [Theory, InlineData(AttentionAlgorithm.Ring), InlineData(AttentionAlgorithm.Gather)]
    public void Whatever_happens_to_the_cache_keys_that_move_by_NCCL_agree_with_the_tree(AttentionAlgorithm algorithm) => NcclRanks.Run(3, (transport, device, control) =>
        Assert.True(GrowingStory.Play(new RankContext(transport, device, control), algorithm) > 0));
}
