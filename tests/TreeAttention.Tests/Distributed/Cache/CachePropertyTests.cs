using System;
using System.Collections.Generic;
using System.Linq;
using CsCheck;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>A cache beside a list of tokens for each row, through any appends, truncations, forks and releases.</summary>
public sealed class CachePropertyTests
{
    private const int Rows = 3;

    // What happens, to which row, from or with which other row, and a number: tokens, or a share of the row's length in thousandths.
    private static readonly Gen<(int Kind, int Row, int Other, int Number)[]> _stories =
        Gen.Select(Gen.Int[0, 4], Gen.Int[0, Rows - 1], Gen.Int[1, Rows - 1], Gen.Int[0, 1000]).Array[1, 25];

    [Theory, InlineData(1), InlineData(2)]
    public void Every_row_holds_the_tokens_of_a_plain_list(int ranks) => _stories.Sample(
        story => CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(
                context, new CacheOptions { Rows = Rows, KvHeads = 1, HeadDim = 1, ValueDim = 1, MaxLength = 30_000 });
            var model = new List<float>[Rows];
            Array.Fill(model, []);
            int next = 0;
            foreach ((int kind, int row, int other, int number) in story)
            {
                int length = model[row].Count * number / 1000;
                switch (kind)
                {
                    case 0 or 1:
                        float[] tokens = [.. Enumerable.Range(next, number).Select(token => (float)token)];
                        next += number;
                        cache.Append(0, [row], tokens, [.. tokens.Select(token => -token)]);
                        model[row] = [.. model[row], .. tokens];
                        break;
                    case 2:
                        cache.Truncate(row, length);
                        model[row] = [.. model[row].Take(length)];
                        break;
                    case 3:
                        cache.Fork(row, (row + other) % Rows, length);
                        model[(row + other) % Rows] = [.. model[row].Take(length)];
                        break;
                    default:
                        cache.Release(row);
                        model[row] = [];
                        break;
                }
            }

            for (int row = 0; row < Rows; row++)
            {
                Assert.Equal(model[row].Count, cache.LengthOf(row));
                AssertHolds(cache, row, model[row]);
            }
        }),
        iter: 60, threads: 1);

    private static void AssertHolds(ShardedKvCache cache, int row, List<float> tokens)
    {
        float[] key = new float[1];
        float[] value = new float[1];
        for (int position = 0; position < tokens.Count; position++)
        {
            Assert.Equal(cache.Owns(position), cache.TryRead(0, row, position, key, value));
            Assert.True(!cache.Owns(position) || (key[0] == tokens[position] && value[0] == -tokens[position]), $"row {row}, position {position}: {key[0]}");
        }
    }
}
