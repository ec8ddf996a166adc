using System;
using System.IO;
using System.Linq;
using TreeAttention.Distributed.Ports;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>A cache of symmetric int8 elements with scales of each KV head.</summary>
public sealed class Int8CacheTests
{
    private static readonly DecodeCase _decode = new("int8")
    {
        Before = [1100, 37],
        Padding = [3, 0],
        NewTokens = 2,
        QueryLength = 2,
        ValueDim = 7,
        Type = ElementType.Int8,
        Scales = new KeyValueScales([0.06f, 0.05f], [0.05f, 0.07f]),
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
            VerificationReport coarse = Run(context, _decode.CacheOptions with { Scales = new KeyValueScales([5, 5], [5, 5]) });

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
            float[] key = [7.5f, -4.4f, 444, -1.9f];
            float[] value = [17.5f, 0, 0.3f, -31.8f];
            cache.Append(0, [0], key, value);

            // [head 0: scales 3 and 1, head 1: 3.5 and 0.25]; 7.5 / 3 is the tie between 2 and 3.
            Assert.Equal([6, -3, 444.5f, -3.5f, 18, 0, 0.25f, -31.75f], Read(cache, 0, 0, 2));
        });
    }

    [Fact]
    public void A_number_past_127_times_its_scale_is_named_and_nothing_is_stored()
    {
        DecodeCase decode = Small();

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            float[] good = [1, 2, 446.2f, 3]; // 127.5 x 3.5 is too large: it would be -128 or saturate
            FaultException key = Assert.Throws<FaultException>(() => cache.Append(0, [0], [1, 2, -446.25f, 3], good));
            FaultException value = Assert.Throws<FaultException>(() => cache.Append(0, [0], good, [1, 127.5f, 1, 1]));

            Assert.Equal((FaultCode.BadInput, FaultCode.BadInput), (key.Code, value.Code));
            Assert.StartsWith("key[batch 0, position 0, head 1, dim 0] is -446.25, too large for i8 with a scale of 3.5, which ends at 444.5.", key.Message, StringComparison.Ordinal);
            Assert.Contains("Give a larger KeyValueScales.Value", value.Message, StringComparison.Ordinal);
            Assert.Equal(0, cache.LengthOf(0));
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

            float[] moved = Read(cache, 0, 509);
            Assert.True(ranks > 1 || kept.Length > 0);
            Assert.True(moved.Length == 0 || Math.Abs(moved[0] - _decode.Keys(0, 515, 1)[0]) <= 0.031f);
            Assert.Equal(kept, Read(cache, 1, 515));
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
                using var other = new ShardedKvCache(context, _decode.CacheOptions with { Scales = new KeyValueScales([0.06f, 0.05f], [0.05f, 0.08f]) });
                FaultException fault = Assert.Throws<FaultException>(() => CacheFiles.Load(context, other, directory));

                Assert.Equal(saved, Read(cache, 0, 17));
                Assert.True(report.Wrong == 0, report.WorstRow);
                Assert.Contains("value_scales are [0.05, 0.07], but this cache has [0.05, 0.08]", fault.Message, StringComparison.Ordinal);
            });
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    [Fact]
    public void Pages_of_another_system_in_int8_are_taken_over_element_by_element()
    {
        DecodeCase decode = Small();
        double[] elements = [.. Enumerable.Range(0, 16).Select(i => (double)((i * 37 % 255) - 127))]; // [2 pages, 2 tokens, 2 heads, 2]
        using var tensor = new HostTensor("pages", ElementType.Int8, [2, 2, 2, 2], elements);

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
                Assert.Equal(
                    [expected[0] * 3, expected[1] * 3, expected[2] * 3.5f, expected[3] * 3.5f, expected[0], expected[1], expected[2] / 4, expected[3] / 4],
                    Read(cache, 0, token, 2));
            }
        });
    }

    private static DecodeCase Small() => new("small")
    {
        Before = [4],
        Padding = [0],
        QueryHeads = 2,
        HeadDim = 2,
        ValueDim = 2,
        Type = ElementType.Int8,
        Scales = new KeyValueScales([3f, 3.5f], [1f, 0.25f]),
    };

    private static float[] Read(ShardedKvCache cache, int row, int position, int valueDim = 7)
    {
        float[] key = new float[2 * cache.Options.HeadDim];
        float[] value = new float[2 * valueDim];
        return cache.TryRead(0, row, position, key, value) ? [.. key, .. value] : [];
    }
}
