using System;
using System.Linq;
using TreeAttention.Communication.InProcess;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Tests.Devices.Cuda;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>Tokens that are gone from a cache leave its pages' limits raised, and no trace in reproducible bits.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class GoneTokensTests
{
    private static readonly DecodeCase _decode = new("gone") { Before = [600, 530], NewTokens = 1, Options = new AttentionOptions { Causal = true } };

    [Theory, InlineData(false), InlineData(true)]
    public void Truncated_tokens_change_no_bit_however_large_they_were(bool isGpu)
    {
        Func<IDevice> create = isGpu ? () => EmulatedCuda.CreateDevice() : () => new CpuDevice(1);

        float[] never = Decode(create, cache => _decode.Fill(cache, 600));
        float[] truncated = Decode(create, cache =>
        {
            _decode.Fill(cache, 600);
            cache.Append(0, [0], Huge(3), Huge(3));
            cache.Truncate(0, _decode.Before[0]);
        });
        float[] kept = Decode(create, cache =>
        {
            _decode.Fill(cache, 600);
            cache.Truncate(0, _decode.Before[0] - 1);
            cache.Append(0, [0], Huge(1), Huge(1));
        });

        Assert.Equal(never.Select(BitConverter.SingleToInt32Bits), truncated.Select(BitConverter.SingleToInt32Bits));
        Assert.NotEqual(never, kept); // a token that stays counts
    }

    private static float[] Decode(Func<IDevice> create, Action<ShardedKvCache> fill)
    {
        float[] result = [];
        using var group = InProcessGroup.Create(1);
        group.Run(_ =>
        {
            using IDevice device = create();
            var context = new RankContext(group.Transports[0], device, group.Controls[0]);
            using var cache = new ShardedKvCache(context, _decode.CacheOptions with { MaxLength = 700 });
            fill(cache);
            using var step = new DecodeStep(context, cache, _decode.DecodeOptions(ReductionKind.Lanes));
            (float[] output, float[] lse) = _decode.RunLast(step);
            result = [.. output, .. lse];
        });
        return result;
    }

    private static float[] Huge(int tokens) => [.. Enumerable.Range(0, tokens * 2 * 16).Select(n => n % 2 == 0 ? 3e5f : -2e5f)];
}
