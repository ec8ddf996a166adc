using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

public sealed class DecodeStepTests
{
    public static TheoryData<int, int> RanksAndChunks => new() { { 1, 1300 }, { 2, 64 }, { 3, 511 }, { 4, 1 }, { 5, 700 }, { 8, 97 } };

    [Theory, MemberData(nameof(RanksAndChunks))]
    public void A_cache_filled_in_any_chunks_on_any_ranks_gives_attention_over_the_whole(int ranks, int chunk)
    {
        var decode = new DecodeCase($"chunks of {chunk}") { Options = new AttentionOptions { Causal = true }, NewTokens = 3, QueryLength = 3 };

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, chunk);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions());
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, report.WorstRow);
        });
    }
}
