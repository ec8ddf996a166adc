using System;
using System.Linq;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>flash-attn's test grid of flash_attn_with_kvcache (tests/test_flash_attn.py, v2.7.3), every case once, on 1, 2 or 4 ranks.</summary>
public sealed class FlashKvCacheTests
{
    private static readonly (int Queries, int Keys)[] _lengths =
        [(1, 128), (1, 339), (3, 1024), (64, 800), (64, 256), (3, 799), (64, 2048), (16, 6000), (128, 128)];

    private static readonly int[] _dims = [32, 59, 64, 80, 128, 256];
    private static readonly int[] _ranks = [1, 2, 4];
    private static readonly ElementType[] _types = [ElementType.Float16, ElementType.BFloat16, ElementType.Float32];

    public static TheoryData<int> Cases => [.. Enumerable.Range(0, 36)];

    [Theory, MemberData(nameof(Cases))]
    public void A_case_of_the_grid_is_attention_over_cache_and_new_tokens(int number)
    {
        (DecodeCase decode, int[] rows) = CaseOf(number);

        CacheRanks.Run(_ranks[number % 3], context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { Rows = 4 });
            FillRows(decode, cache, rows);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions() with { Rows = rows });
            (float[] output, float[] lse) = decode.RunLast(step);

            VerificationReport report = decode.Check(output, lse);
            Assert.True(report.Wrong == 0, $"{decode.Name}: {report.WorstRow}");
            Assert.True(report.Rows > 0);
        });
    }

    [Fact]
    public void A_query_aligned_one_key_off_is_found()
    {
        (DecodeCase decode, int[] rows) = CaseOf(1); // causal, one query, rotary

        CacheRanks.Run(1, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { Rows = 4, MaxLength = decode.Longest + 1 });
            FillRows(decode, cache, rows);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions() with { Rows = rows });
            (float[] output, float[] lse) = decode.RunLast(step);
            (float[] key, float[] value) = decode.LastTokens();
            cache.Append(0, rows, key, value); // the last tokens once more: all is one key on
            float[] moved = new float[output.Length];
            float[] movedLse = new float[lse.Length];
            step.Attend(0, decode.Query, moved, movedLse);

            Assert.Equal(0, decode.Check(output, lse).Wrong);
            Assert.True(decode.Check(moved, movedLse).Wrong > 0);
        });
    }

    // Mixed radix digits of the case's number reach every level of every factor, and most pairs.
    private static (DecodeCase Decode, int[] Rows) CaseOf(int number)
    {
        var random = new Random(number);
        (int queries, int keys) = _lengths[number % _lengths.Length];
        int dim = _dims[(number / 2) % _dims.Length];
        bool isCausal = number % 2 == 1;
        bool isLocal = number % 5 == 3;
        int newTokens = number % 4 == 3 ? Math.Min(queries + 1, 5) : queries;
        int[] padding = number % 3 == 2 ? [random.Next(keys / 4), 0] : [0, 0];
        int room = Math.Max(1, keys - newTokens);
        int[] before = [random.Next(room), number % 7 == 0 ? 0 : random.Next(room)];
        double fraction = (number % 3) / 2.0;
        int rotaryDim = (int)(dim * fraction) / 16 * 16;
        var decode = new DecodeCase($"case {number}")
        {
            Before = before,
            Padding = padding,
            NewTokens = newTokens,
            QueryLength = queries,
            QueryHeads = 6,
            KvHeads = new[] { 6, 3, 1 }[(number / 3) % 3],
            HeadDim = dim,
            ValueDim = dim,
            Type = _types[(number / 4) % 3],
            Rotary = rotaryDim == 0 ? null : new RotaryOptions(rotaryDim, Interleaved: number % 4 < 2),
            Options = new AttentionOptions
            {
                Causal = isCausal,
                WindowLeft = isLocal ? random.Next(keys) : -1,
                WindowRight = isLocal ? random.Next(keys) : -1,
                AlibiSlopes = number % 6 == 4 ? [.. Enumerable.Range(0, 12).Select(i => (i + 1) * 0.02f)] : null,
                Softcap = number % 8 == 5 ? 15 : 0,
                Sinks = number % 9 == 6 ? [.. Enumerable.Range(0, 6).Select(i => i - 2f)] : null,
            },
        };
        return (decode, number % 2 == 0 ? [0, 1] : [3, 1]);
    }

    private static void FillRows(DecodeCase decode, ShardedKvCache cache, int[] rows)
    {
        for (int i = 0; i < rows.Length; i++)
        {
            cache.PadLeft(rows[i], decode.Padding[i]);
            cache.Append(0, [rows[i]], decode.Keys(i, 0, decode.Before[i]), decode.Values(i, 0, decode.Before[i]));
        }
    }
}
