using TreeAttention.Communication;
using TreeAttention.Devices;
using TreeAttention.Distributed;
using Xunit;

namespace TreeAttention.Tests;

/// <summary>Rings that move the keys of a growing cache between GPUs.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaRingDecodeTests
{
    [Fact]
    public void Whatever_happens_to_the_cache_a_staged_ring_agrees_with_the_tree()
    {
        _ = EmulatedCuda.Platform;
        using var group = InProcessGroup.Create(3);
        group.Run(rank =>
        {
            using CudaDevice device = EmulatedCuda.CreateDevice();
            using var transport = new StagedTransport(group.Transports[rank], device);
            Assert.True(GrowingStory.Play(new RankContext(transport, device, group.Controls[rank]), AttentionAlgorithm.Ring) > 0);
        });
    }

    [Fact]
    public void Whatever_happens_to_the_cache_a_ring_over_NCCL_agrees_with_the_tree() => NcclRanks.Run(3, (transport, device, control) =>
        Assert.True(GrowingStory.Play(new RankContext(transport, device, control), AttentionAlgorithm.Ring) > 0));
}
