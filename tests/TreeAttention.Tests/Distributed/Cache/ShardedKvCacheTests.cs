using System;
using System.Linq;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

public sealed class ShardedKvCacheTests
{
    public static TheoryData<int> RankCounts => [1, 2, 3, 5, 8];

    [Theory, MemberData(nameof(RankCounts))]
    public void Stored_values_are_bit_equal_and_other_slots_stay_as_they_were(int ranks)
    {
        var decode = new DecodeCase("bits") { Before = [1100, 3], ValueDim = 7 };

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, 333);
            float[][] before = [.. Enumerable.Range(0, 1100).Select(position => Read(cache, 0, position, decode))];
            (float[] key, float[] value) = decode.LastTokens();
            cache.Append(0, key, value);

            for (int position = 0; position < 1101; position++)
            {
                float[] stored = Read(cache, 0, position, decode);
                if (stored.Length > 0)
                {
                    Assert.Equal([.. decode.Keys(0, position, 1), .. decode.Values(0, position, 1)], stored);
                    Assert.True(position == 1100 || stored.SequenceEqual(before[position]));
                }
            }
        });
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void Every_token_has_one_owner_and_ranks_differ_by_few_pages(int ranks)
    {
        const int Pages = 40;
        int[] owned = new int[ranks];
        var decode = new DecodeCase("owners") { Before = [Pages * 512], NewTokens = 0, Padding = [0], KvHeads = 1, HeadDim = 1, ValueDim = 1 };

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, 4096);
            owned[context.Transport.Rank] = Enumerable.Range(0, Pages).Count(page => Read(cache, 0, (page * 512) + 17, decode).Length > 0);
        });

        Assert.Equal(Pages, owned.Sum());
        Assert.InRange(owned.Max() - owned.Min(), 0, ranks == 1 ? 0 : 3);
    }

    [Fact]
    public void A_full_cache_says_so_on_every_rank_and_is_intact()
    {
        var decode = new DecodeCase("full") { Before = [1024, 1024], Options = new AttentionOptions { Causal = true } };

        CacheRanks.Run(2, context =>
        {
            CacheOptions options = decode.CacheOptions with { MaxLength = 4096 };
            long page = 2L * 512 * (16 + 16) * sizeof(float);
            using var cache = new ShardedKvCache(context, options with { MemoryBytes = 2 * page });
            decode.Fill(cache, 512);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            float[] output = new float[2 * 6 * 16];
            float[] lse = new float[2 * 6];
            step.Attend(0, decode.Query, output, lse);

            (float[] key, float[] value) = decode.LastTokens();
            FaultException fault = Assert.Throws<FaultException>(() => cache.Append(0, key, value));
            float[] after = new float[output.Length];
            step.Attend(0, decode.Query, after, lse);

            Assert.Equal(FaultCode.OutOfMemory, fault.Code);
            Assert.Contains("rank 0, which has 2 and 0 of them free", fault.Message, StringComparison.Ordinal);
            Assert.True(fault.IsAgreed);
            Assert.Equal([1024, 1024], [cache.LengthOf(0), cache.LengthOf(1)]);
            Assert.Equal(output, after);

            cache.Truncate(1, 512); // a page on one rank is free again, but each row needs one there
            Assert.Throws<FaultException>(() => cache.Append(0, key, value));
            cache.Release(1);
            cache.Append(0, [0], decode.Keys(0, 1024, 1), decode.Values(0, 1024, 1));
            Assert.Equal(1025, cache.LengthOf(0));
        });
    }

    [Fact]
    public void A_row_past_its_largest_length_is_refused()
    {
        var decode = new DecodeCase("longest") { Before = [20, 7] };

        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 20 });
            decode.Fill(cache, 20);

            FaultException fault = Assert.Throws<FaultException>(() => cache.Append(0, decode.LastTokens().Key, decode.LastTokens().Value));

            Assert.Equal(FaultCode.OutOfMemory, fault.Code);
            Assert.Equal(7, cache.LengthOf(1));
        });
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void A_fork_shares_pages_until_one_of_the_rows_writes(int ranks)
    {
        var decode = new DecodeCase("fork") { Before = [1300, 1300] };

        CacheRanks.Run(ranks, context =>
        {
            // Room for one row and, on each rank, one page more: only sharing makes the second row fit.
            long page = 2L * 512 * (16 + 16) * sizeof(float);
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 1536, MemoryBytes = 4 * page });
            cache.Append(0, [0], decode.Keys(0, 0, 1300), decode.Values(0, 0, 1300));
            cache.Fork(0, 1, 1300);
            cache.Append(0, [1], decode.Keys(1, 1300, 1), decode.Values(1, 1300, 1));
            cache.Append(0, [0], decode.Keys(0, 1300, 1), decode.Values(0, 1300, 1));

            AssertStored(cache, decode, 0, 1300, decode.Keys(0, 1300, 1).ToArray());
            AssertStored(cache, decode, 1, 1300, decode.Keys(1, 1300, 1).ToArray());
            AssertStored(cache, decode, 1, 1299, decode.Keys(0, 1299, 1).ToArray());
            AssertStored(cache, decode, 1, 5, decode.Keys(0, 5, 1).ToArray());

            cache.Release(0);
            AssertStored(cache, decode, 1, 5, decode.Keys(0, 5, 1).ToArray());
        });
    }

    [Fact]
    public void Two_rows_that_share_a_page_and_grow_at_once_need_one_page_more()
    {
        var decode = new DecodeCase("siblings") { Before = [100, 100] };

        CacheRanks.Run(1, context =>
        {
            long page = 2L * 512 * (16 + 16) * sizeof(float);
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MemoryBytes = 2 * page });
            cache.Append(0, [0], decode.Keys(0, 0, 100), decode.Values(0, 0, 100));
            cache.Fork(0, 1, 100);
            (float[] key, float[] value) = decode.LastTokens();
            cache.Append(0, key, value);

            AssertStored(cache, decode, 0, 100, decode.Keys(0, 100, 1).ToArray());
            AssertStored(cache, decode, 1, 100, decode.Keys(1, 100, 1).ToArray());
            AssertStored(cache, decode, 1, 99, decode.Keys(0, 99, 1).ToArray());
        });
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void A_truncated_row_gives_what_a_row_of_that_length_gives(int ranks)
    {
        var decode = new DecodeCase("truncate") { Before = [513, 1024], Options = new AttentionOptions { Causal = true } };

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 2000 });
            decode.Fill(cache, 400);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions(ReductionKind.Lanes));
            float[] junk = [.. Enumerable.Repeat(3f, 2 * 700 * 2 * 16)];
            cache.Append(0, junk, junk);
            float[] ignored = new float[2 * 6 * 16];
            step.Attend(0, decode.Query, ignored, new float[12]);
            cache.Truncate(0, 513);
            cache.Truncate(1, 1024);
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void Kept_tokens_move_to_their_new_places_whoever_owns_them(int ranks)
    {
        var decode = new DecodeCase("keep") { Before = [508, 1530], ValueDim = 7, Type = ElementType.BFloat16, Options = new AttentionOptions { Causal = true } };
        int[] path = [1, 4, 5, 11]; // from page 0 into page 0, from page 1 into page 0: the owner changes

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 2000 });
            using var plain = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 2000 });
            decode.Fill(cache, 1000);
            decode.Fill(plain, 1000);
            cache.Fork(0, 1, 508);
            float[] keys = [.. Enumerable.Range(0, 12 * 2 * 16).Select(i => i * 0.25f)];
            float[] values = [.. Enumerable.Range(0, 12 * 2 * 7).Select(i => i * -0.5f)];
            cache.Append(0, [0], keys, values);
            cache.Keep(0, 508, path);
            foreach (int node in path)
            {
                plain.Append(0, [0], keys.AsSpan(node * 32, 32), values.AsSpan(node * 14, 14));
            }

            Assert.Equal(512, cache.LengthOf(0));
            for (int position = 500; position < 512; position++)
            {
                Assert.Equal(Read(plain, 0, position, decode), Read(cache, 0, position, decode));
            }

            Assert.Equal(508, cache.LengthOf(1)); // the sibling that shared the page is as it was
            Assert.Equal(Read(plain, 0, 507, decode), Read(cache, 1, 507, decode));
        });
    }

    [Fact]
    public void Tokens_that_must_not_be_stored_are_named_and_nothing_is_stored()
    {
        var decode = new DecodeCase("nan") { Before = [3, 5], Type = ElementType.Float16, Rotary = new RotaryOptions(16) };

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, 5);
            (float[] key, float[] value) = decode.LastTokens();
            float[] bad = [.. key];
            bad[(2 * 16) + 16 + 5] = float.NaN; // row 1, head 1, dim 5
            float[] large = [.. key];
            (large[0], large[8]) = (60_000, 60_000); // each fits f16, but not what rotation by 3 makes of them

            FaultException fault = Assert.Throws<FaultException>(() => cache.Append(0, bad, value));
            FaultException overflow = Assert.Throws<FaultException>(() => cache.Append(0, large, value));

            Assert.Equal((FaultCode.BadInput, FaultCode.BadInput), (fault.Code, overflow.Code));
            Assert.Contains("key[batch 1, position 5, head 1, dim 5] is NaN", fault.Message, StringComparison.Ordinal);
            Assert.Contains("too large for f16", overflow.Message, StringComparison.Ordinal);
            Assert.Equal([3, 5], [cache.LengthOf(0), cache.LengthOf(1)]);
        });
    }

    private static void AssertStored(ShardedKvCache cache, DecodeCase decode, int row, int position, float[] key)
    {
        float[] stored = Read(cache, row, position, decode);
        if (stored.Length > 0)
        {
            Assert.Equal(key, stored[..key.Length]);
        }
    }

    private static float[] Read(ShardedKvCache cache, int row, int position, DecodeCase decode)
    {
        float[] key = new float[decode.KvHeads * decode.HeadDim];
        float[] value = new float[decode.KvHeads * decode.ValueDim];
        return cache.TryRead(0, row, position, key, value) ? [.. key, .. value] : [];
    }
}
