using System;
using System.IO;
using System.Linq;
using System.Runtime.CompilerServices;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>A cache of f8e4m3 elements with scales of each KV head.</summary>
public sealed class Float8CacheTests
{
    private static readonly DecodeCase _decode = new("eight bits")
    {
        Before = [1100, 37],
        Padding = [3, 0],
        NewTokens = 2,
        QueryLength = 2,
        ValueDim = 7,
        Type = ElementType.Float8E4M3,
        Scales = new KeyValueScales([0.01f, 0.3f], [0.7f, 0.003f]),
        Rotary = new RotaryOptions(8),
        Options = new AttentionOptions { Causal = true },
    };

    [Theory]
    [InlineData(1, ReductionKind.Auto)]
    [InlineData(3, ReductionKind.Lanes)]
    [InlineData(2, ReductionKind.TwoAllReduce)]
    public void Decoding_is_right_by_scales_that_fit_and_wrong_by_scales_that_leave_no_bits(int ranks, ReductionKind reduction)
    {
        CacheRanks.Run(ranks, context =>
        {
            VerificationReport scaled = Run(context, _decode.CacheOptions);
            VerificationReport coarse = Run(context, _decode.CacheOptions with { Scales = new KeyValueScales([1000, 1000], [1000, 1000]) });

            Assert.True(scaled.Wrong == 0, scaled.WorstRow);
            Assert.NotEqual(0, coarse.Wrong);
        });

        VerificationReport Run(RankContext context, CacheOptions options)
        {
            using var cache = new ShardedKvCache(context, options);
            _decode.Fill(cache, 333);
            using var step = new DecodeStep(context, cache, _decode.DecodeOptions(reduction));
            (float[] output, float[] lse) = _decode.RunLast(step);
            return _decode.Check(output, lse);
        }
    }

    [Fact]
    public void An_appended_number_is_the_nearest_stored_element_times_the_scale()
    {
        DecodeCase decode = Small();

        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            float[] key = [51, -3, 1344, 0.02f];
            float[] value = [17.01f, 0, 0.3f, -112];
            cache.Append(0, [0], key, value);
            float[] storedKey = new float[4];
            float[] storedValue = new float[4];
            cache.TryRead(0, 0, 0, storedKey, storedValue);

            // [head 0: scales 3 and 1, head 1: 3.5 and 0.25]; 51 / 3 is the tie between 16 and 18.
            Assert.Equal([48, -3, 1344, 3 * 3.5f / 512], storedKey);
            Assert.Equal([18, 0, 0.3125f, -112], storedValue);
        });
    }

    [Fact]
    public void Limits_are_of_numbers_not_of_stored_elements()
    {
        using var device = new CpuDevice(1);
        var plan = new ShardPlan(new AttentionShape(1, 1, 1, 2, 2, 2, 2), [new PageSpan(KeyRun.Contiguous(0, 1), 0, 1)], ElementType.Float8E4M3, false, Small().Scales);
        var shard = new KeyValueShard(plan, device.Allocate(4 * 512 * 2, plan.Type), [])
        {
            Growing = device.Allocate(2 * Unsafe.SizeOf<PageLimits>(), ElementType.Byte),
        };
        shard.Growing.AsSpan<byte>().Clear();
        Region numbers = device.Allocate(4 * sizeof(float), ElementType.Float32);
        float[] token = [48, -36, 7, 0.02f];
        token.CopyTo(numbers.AsSpan<float>());

        device.Append(new TokenBlock(numbers, numbers, [new TokenPlace(0, 2 * 512 * 2, 0)], 1, null), shard);

        PageLimits[] limits = [shard.LimitsOf(0, 0), shard.LimitsOf(0, 1)];
        Assert.Equal([60f, 7f], limits.Select(limit => limit.LargestKeyNorm), (a, b) => MathF.Abs(a - b) < 1e-3f);
        Assert.Equal([48f, 7f], limits.Select(limit => limit.LargestValue));
    }

    [Fact]
    public void A_number_past_448_times_its_scale_is_named_on_every_way_in_and_nothing_is_stored()
    {
        DecodeCase decode = Small();

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            float[] good = [1, 2, 1624, 3]; // 464 x 3.5 rounds to 448 x 3.5 still
            float[] large = [1, 2, 1624.1f, 3];
            FaultException appended = Assert.Throws<FaultException>(() => cache.Append(0, [0], large, good));
            FaultException value = Assert.Throws<FaultException>(() => cache.Append(0, [0], good, [1, 465, 1, 1]));
            using var tensor = new HostTensor("key", ElementType.Float64, [1, 1, 2, 2], [1, 2, 1624.1, 3]);
            using var values = new HostTensor("value", ElementType.Float32, [1, 1, 2, 2], [1, 2, 3, 4]);
            var source = new TensorTokens(tensor.View, values.View, decode.CacheOptions);
            FaultException? read = context.Transport.Rank == 0 ? Assert.Throws<FaultException>(() => cache.AppendShard(0, 0, 1, source)) : null;

            Assert.Equal((FaultCode.BadInput, FaultCode.BadInput), (appended.Code, value.Code));
            Assert.StartsWith("key[batch 0, position 0, head 1, dim 0] is 1624.09998, too large for f8e4m3 with a scale of 3.5, which ends at 1568.", appended.Message, StringComparison.Ordinal);
            Assert.Contains("Give a larger KeyValueScales.Value", value.Message, StringComparison.Ordinal);
            Assert.True(read is null || read.Message.StartsWith("key[batch 0, position 0, head 1, dim 0] is 1624.1, too large", StringComparison.Ordinal));
            Assert.Equal(0, cache.LengthOf(0));
        });
    }

    [Fact]
    public void A_number_that_its_rotation_makes_too_large_is_refused_in_a_prompt_too()
    {
        DecodeCase decode = Small();

        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { Rotary = new RotaryOptions(2) });
            float[] turning = [.. Enumerable.Repeat(1200f, 2 * 4)]; // head 0 has room up to 1392: it is right at position 0, not at position 1
            float[] values = new float[2 * 4];
            using var key = new HostTensor("key", ElementType.Float32, [1, 2, 2, 2], [.. turning.Select(x => (double)x)]);
            using var value = new HostTensor("value", ElementType.Float32, [1, 2, 2, 2], new double[8]);
            var unrotated = new TensorTokens(key.View, value.View, cache.Options);
            var rotated = new TensorTokens(key.View, value.View, cache.Options) { IsRotated = true };

            FaultException appended = Assert.Throws<FaultException>(() => cache.Append(0, [0], turning, values));
            FaultException prompt = Assert.Throws<FaultException>(() => cache.AppendShard(0, 0, 2, unrotated));
            cache.AppendShard(0, 0, 2, rotated);

            Assert.Equal(appended.Message, prompt.Message);
            Assert.StartsWith("key[batch 0, position 1, head 0, dim 1] is 1658.1", prompt.Message, StringComparison.Ordinal);
            Assert.Equal(2, cache.LengthOf(0));
        });
    }

    [Theory]
    [InlineData(1)]
    [InlineData(3)]
    public void Forked_and_kept_tokens_stay_as_they_were_stored(int ranks)
    {
        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions with { Rotary = null });
            cache.Append(0, [0], _decode.Keys(0, 0, 520), _decode.Values(0, 0, 520));
            float[] kept = Read(cache, 0, 515);
            cache.Fork(0, 1, 520);
            cache.Keep(0, 508, [2, 7]); // 515 goes from page 1 to page 0

            Assert.True(ranks > 1 || kept.Length > 0);
            float[] moved = Read(cache, 0, 509);
            float[] forked = Read(cache, 1, 515);
            Assert.True(moved.Length == 0 || Math.Abs(moved[0] - _decode.Keys(0, 515, 1)[0]) <= Math.Abs(moved[0]) / 16);
            Assert.Equal(kept, forked);
        });
    }

    [Fact]
    public void A_saved_cache_keeps_its_elements_bit_by_bit_and_wants_its_scales()
    {
        string directory = Directory.CreateTempSubdirectory().FullName;
        try
        {
            float[] saved = [];
            CacheRanks.Run(2, context =>
            {
                using var cache = new ShardedKvCache(context, _decode.CacheOptions);
                _decode.Fill(cache, 1100);
                CacheFiles.Save(context, cache, directory, force: false);
                saved = context.Transport.Rank == 0 ? Read(cache, 0, 17) : saved;
            });

            CacheRanks.Run(1, context =>
            {
                using var cache = new ShardedKvCache(context, _decode.CacheOptions);
                CacheFiles.Load(context, cache, directory);
                using var step = new DecodeStep(context, cache, _decode.DecodeOptions());
                (float[] output, float[] lse) = _decode.RunLast(step);
                VerificationReport report = _decode.Check(output, lse);
                using var other = new ShardedKvCache(context, _decode.CacheOptions with { Scales = new KeyValueScales([0.01f, 0.3f], [0.7f, 0.004f]) });
                FaultException fault = Assert.Throws<FaultException>(() => CacheFiles.Load(context, other, directory));

                Assert.Equal(saved, Read(cache, 0, 17));
                Assert.True(report.Wrong == 0, report.WorstRow);
                Assert.Equal(FaultCode.BadInput, fault.Code);
                Assert.Contains("value_scales are [0.7, 0.003], but this cache has [0.7, 0.004]", fault.Message, StringComparison.Ordinal);
            });
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    [Fact]
    public void Pages_of_another_system_in_eight_bits_are_taken_over_element_by_element()
    {
        DecodeCase decode = Small();
        byte[] encoded = [.. Enumerable.Range(0, 16).Select(i => (byte)((i * 37 % 120) + (i % 3 == 0 ? 128 : 0)))]; // [2 pages, 2 tokens, 2 heads, 2]
        double[] elements = [.. encoded.Select(element => ElementConversion.ToDouble([element], ElementType.Float8E4M3))];
        using var tensor = new HostTensor("pages", ElementType.Float8E4M3, [2, 2, 2, 2], elements);

        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            KeyValueScales scales = decode.Scales!;
            cache.AppendShard(0, 0, 4, new PagedTokens(
                tensor.View.WithHeadScales(scales.Key), tensor.View.WithHeadScales(scales.Value), [1, 0], 2, cache.Options)
            {
                IsRotated = true,
            });

            for (int token = 0; token < 4; token++)
            {
                float[] expected = [.. elements.Skip((token < 2 ? 8 : -8) + (token * 4)).Take(4).Select(x => (float)x)];
                float[] stored = Read(cache, 0, token, 2);
                Assert.Equal(
                    [expected[0] * 3, expected[1] * 3, expected[2] * 3.5f, expected[3] * 3.5f, expected[0], expected[1], expected[2] / 4, expected[3] / 4], stored);
            }
        });
    }

    [Fact]
    public void Scales_that_do_not_fit_are_refused()
    {
        DecodeCase decode = Small();

        CacheRanks.Run(1, context =>
        {
            Assert.Throws<ShapeMismatchException>(() => new ShardedKvCache(context, decode.CacheOptions with { Type = ElementType.Float16 }));
            Assert.Throws<ShapeMismatchException>(() => new ShardedKvCache(context, decode.CacheOptions with { Scales = new KeyValueScales([1], [1]) }));
        });
    }

    private static DecodeCase Small() => new("small")
    {
        Before = [4],
        Padding = [0],
        QueryHeads = 2,
        HeadDim = 2,
        ValueDim = 2,
        Type = ElementType.Float8E4M3,
        Scales = new KeyValueScales([3f, 3.5f], [1f, 0.25f]),
    };

    private static float[] Read(ShardedKvCache cache, int row, int position, int valueDim = 7)
    {
        float[] key = new float[2 * cache.Options.HeadDim];
        float[] value = new float[2 * valueDim];
        return cache.TryRead(0, row, position, key, value) ? [.. key, .. value] : [];
    }
}
