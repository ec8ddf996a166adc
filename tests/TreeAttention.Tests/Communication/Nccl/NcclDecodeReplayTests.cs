using System;
using System.Collections.Concurrent;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Communication.Nccl;

/// <summary>Decode steps over NCCL as graphs: kernels, collectives and copies of a step by one call, while the cache grows over the ranks' pages.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class NcclDecodeReplayTests
{
    private static readonly CacheOptions _cache = new()
    {
        Layers = 2,
        Rows = 2,
        KvHeads = 2,
        HeadDim = 16,
        ValueDim = 16,
        MaxLength = 3000,
        Type = ElementType.BFloat16,
        Rotary = new RotaryOptions(16),
    };

    [Theory]
    [InlineData(2, ReductionKind.Butterfly)]
    [InlineData(3, ReductionKind.Lanes)]
    [InlineData(3, ReductionKind.TwoAllReduce)]
    [InlineData(4, ReductionKind.AllGather)]
    public void All_ranks_capture_alike_as_pages_begin_and_have_the_bits_of_direct_steps(int ranks, ReductionKind reduction)
    {
        float[] replayed = Run(ranks, reduction, areAlone: true, out long launches);
        float[] direct = Run(ranks, reduction, areAlone: false, out long launchesDirectly);

        Assert.Equal(direct.Select(BitConverter.SingleToInt32Bits), replayed.Select(BitConverter.SingleToInt32Bits));
        Assert.True(replayed.Any(x => x != 0) && replayed.All(float.IsFinite));
        Assert.Equal(0, launches);
        Assert.True(launchesDirectly > 0);
    }

    // From 1010 tokens on: the third page begins on the way, with it room for four, and belongs to another rank than the second.
    private static float[] Run(int ranks, ReductionKind reduction, bool areAlone, out long launchesAtTheEnd)
    {
        var decode = new DecodeOptions
        {
            QueryLength = 2,
            QueryHeads = 4,
            Attention = new AttentionOptions { Causal = true },
            Plan = new AttentionPlan(AttentionAlgorithm.Tree, reduction, QueryPlacement.Replicated),
        };
        var results = new ConcurrentDictionary<int, (float[] Outputs, long Launches)>();
        NcclRanks.Run(ranks, (transport, device, control) =>
        {
            var context = new RankContext(transport, device, control);
            using var cache = new ShardedKvCache(context, _cache);
            using var step = new DecodeStep(context, cache, decode);
            var tokens = new StepTokens(_cache, decode, 5);
            tokens.Prefill(cache, 1010, 90);
            float[][] outputs = new float[16 * _cache.Layers][];
            long launches = 0;
            for (int i = 0; i < outputs.Length; i++)
            {
                launches = i == outputs.Length - 8 ? device.Launches : launches;
                tokens.Step(step, i % _cache.Layers);
                outputs[i] = [.. tokens.Output, .. tokens.Lse];
            }

            results[transport.Rank] = ([.. outputs.SelectMany(x => x)], device.Launches - launches);
        }, areAlone: areAlone);
        launchesAtTheEnd = results.Values.Max(result => result.Launches);
        Assert.All(results.Values, result => Assert.Equal(results[0].Outputs, result.Outputs));
        return results[0].Outputs;
    }
}
