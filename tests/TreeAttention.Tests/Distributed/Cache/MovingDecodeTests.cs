using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

/// <summary>Algorithms that move the keys of a growing cache: rings and gather.</summary>
public sealed class MovingDecodeTests
{
    private static readonly AttentionAlgorithm[] _rings = [AttentionAlgorithm.Ring, AttentionAlgorithm.RingNoOverlap];
    private static readonly AttentionAlgorithm[] _algorithms = [.. _rings, AttentionAlgorithm.Gather];

    private static readonly DecodeCase[] _cases =
    [
        new("plain") { Before = [1300, 37] },
        new("rotary") { Before = [1023, 2050], Padding = [5, 0], NewTokens = 3, QueryLength = 3, Type = ElementType.Float16, Rotary = new RotaryOptions(8), Options = new AttentionOptions { Causal = true } },
        new("window")
        {
            Before = [900, 1536], NewTokens = 2, QueryLength = 2, ValueDim = 7, Type = ElementType.BFloat16,
            Options = new AttentionOptions { WindowLeft = 700, WindowRight = 0, Softcap = 3, AlibiSlopes = [0.1f, 0.05f, 0.02f, 0.01f, 0.3f, 0.001f], Sinks = [1, 0, -1, 2, 0.5f, 3] },
        },
        new("int8") { Before = [1100, 37], ValueDim = 7, Type = ElementType.Int8, Scales = new KeyValueScales([0.05f, 0.06f], [0.05f, 0.07f]) },
        new("eight bits") { Before = [1100, 37], ValueDim = 7, Type = ElementType.Float8E4M3, Scales = new KeyValueScales([0.01f, 0.3f], [0.7f, 0.003f]) },
        new("an empty row") { Before = [0, 600, 0], Padding = [0, 0, 0], QueryLength = 2, NewTokens = 2 },
        new("fewer keys than ranks") { Before = [2, 0] },
        new("loud keys") { Before = [1300, 600], Size = 1e19f, NewTokens = 2, QueryLength = 2, Options = new AttentionOptions { Causal = true } },
    ];

    public static MatrixTheoryData<string, AttentionAlgorithm> Cases => new(_cases.Select(decode => decode.Name), _algorithms);

    [Theory, MemberData(nameof(Cases))]
    public void Moving_keys_gives_attention_over_all_that_the_cache_holds(string name, AttentionAlgorithm algorithm)
    {
        DecodeCase decode = _cases.Single(one => one.Name == name);
        foreach (int ranks in (int[])[1, 2, 3, 5])
        {
            CacheRanks.Run(ranks, context =>
            {
                using var cache = new ShardedKvCache(context, decode.CacheOptions);
                decode.Fill(cache, 611);
                using var step = new DecodeStep(context, cache, decode.DecodeOptions(algorithm: algorithm));
                (float[] output, float[] lse) = decode.RunLast(step);

                VerificationReport report = decode.Check(output, lse);
                Assert.True(report.Wrong == 0, $"{ranks} ranks: {report.WorstRow}");
                Assert.True(decode.Check([.. output.Reverse()], lse).Wrong > 0);
            });
        }
    }

    [Theory]
    [InlineData(AttentionAlgorithm.Ring, 2), InlineData(AttentionAlgorithm.Ring, 3), InlineData(AttentionAlgorithm.RingNoOverlap, 4)]
    [InlineData(AttentionAlgorithm.Gather, 1), InlineData(AttentionAlgorithm.Gather, 2), InlineData(AttentionAlgorithm.Gather, 5)]
    public void Whatever_happens_to_the_cache_moving_its_keys_agrees_with_the_tree(AttentionAlgorithm algorithm, int ranks) =>
        CacheRanks.Run(ranks, context => Assert.True(GrowingStory.Play(context, algorithm) > 0));

    [Theory, InlineData(1), InlineData(2), InlineData(3), InlineData(4), InlineData(5)]
    public void What_travels_are_the_keys_and_values_alone_and_the_limits_of_their_pages(int ranks)
    {
        // Row 2 shares its pages with row 0, and has fewer keys of the second: they travel once, as many as row 0 has.
        (int Page, int Keys)[] held = [(0, 512), (1, 512), (2, 276), (0, 512), (1, 188)];
        var decode = new DecodeCase("traffic") { Before = [1300, 700, 0], Padding = [0, 0, 0], NewTokens = 0, ValueDim = 7, Type = ElementType.Float16 };
        long BytesOf(int rank) => held.Where(page => LaneTree.OwnerOf(page.Page, ranks) == rank).Sum(page => (page.Keys * 2 * (16 + 7) * 2) + (2 * 8));

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions);
            decode.Fill(cache, 512);
            cache.Fork(0, 2, 900);
            int mine = context.Transport.Rank;
            long[] sent = [.. Enumerable.Range(0, ranks).Where(rank => rank != (mine + 1) % ranks).Select(BytesOf)];
            int holders = ranks == 1 ? 0 : Enumerable.Range(0, ranks).Count(rank => BytesOf(rank) > 0);
            foreach (AttentionAlgorithm algorithm in _algorithms)
            {
                using var step = new DecodeStep(context, cache, decode.DecodeOptions(algorithm: algorithm));
                Traffic traffic = context.Transport.Traffic;
                traffic.Reset();
                step.Attend(0, decode.Query, new float[3 * 6 * 7], new float[3 * 6]);

                TrafficCount expected = algorithm == AttentionAlgorithm.Gather
                    ? new TrafficCount(ranks == 1 ? 0 : BytesOf(mine), 0, holders)
                    : new TrafficCount(sent.Sum(), sent.Count(bytes => bytes > 0), 0);
                Assert.Equal(expected, traffic.Count);
            }
        });
    }

    [Theory]
    [InlineData(AttentionAlgorithm.Ring, 1, 0), InlineData(AttentionAlgorithm.Ring, 2, 2), InlineData(AttentionAlgorithm.Ring, 4, 2)]
    [InlineData(AttentionAlgorithm.Gather, 1, 0), InlineData(AttentionAlgorithm.Gather, 4, 4)]
    public void Memory_is_rooms_for_the_largest_shard_that_can_be_and_nothing_later(AttentionAlgorithm algorithm, int ranks, int rooms)
    {
        var decode = new DecodeCase("rooms") { Before = [20, 2100], NewTokens = 1, ValueDim = 7, Type = ElementType.BFloat16 };
        int pages = Enumerable.Range(0, ranks).Max(rank => Enumerable.Range(0, 6).Count(page => LaneTree.OwnerOf(page, ranks) == rank));
        long limits = 2 * pages * 2 * 8;
        long room = ((limits + 63) / 64 * 64) + (2 * pages * 2 * 512L * (16 + 7) * 2);
        int states = algorithm == AttentionAlgorithm.Gather ? 1 : 2;

        CacheRanks.Run(ranks, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 3000 });
            decode.Fill(cache, 512);
            MemoryAccount memory = context.Device.Memory;
            long before = memory.Bytes;
            using var step = new DecodeStep(context, cache, decode.DecodeOptions(algorithm: algorithm));

            long state = PartialAttention.FloatsFor(2 * 6, 7) * sizeof(float);
            long queries = 2 * 6 * 16 * sizeof(float);
            long joined = algorithm == AttentionAlgorithm.Gather ? rooms * limits : 0;
            Assert.Equal((rooms * room) + joined + (states * state) + queries, memory.Bytes - before);
            decode.RunLast(step);
            long warm = memory.Bytes;
            for (int i = 0; i < 30; i++)
            {
                decode.RunLast(step);
            }

            Assert.Equal(warm, memory.Bytes);
        });
    }

    [Fact]
    public void A_ring_over_token_trees_agrees_with_the_tree_reduction()
    {
        var nodes = TokenTree.FromParents([-1, 0, 0, 1, 1, 2, 3, 3, 5, 6]);
        var decode = new DecodeCase("nodes") { Before = [508, 130], NewTokens = nodes.Count, QueryLength = nodes.Count, Options = new AttentionOptions { Causal = true } };

        CacheRanks.Run(3, context =>
        {
            float[] Run(AttentionAlgorithm algorithm, TokenTree tree)
            {
                using var cache = new ShardedKvCache(context, decode.CacheOptions);
                decode.Fill(cache, 512);
                using var step = new SpeculativeStep(context, cache, decode.DecodeOptions(algorithm: algorithm), tree);
                (float[] key, float[] value) = decode.LastTokens();
                float[] output = new float[2 * nodes.Count * 6 * 16];
                step.Run(0, decode.Query, key, value, output, new float[2 * nodes.Count * 6]);
                return output;
            }

            float[] expected = Run(AttentionAlgorithm.Tree, nodes);
            float[] chain = Run(AttentionAlgorithm.Ring, TokenTree.FromParents([.. Enumerable.Range(-1, nodes.Count)]));

            Assert.All(expected.Zip(Run(AttentionAlgorithm.Ring, nodes)), pair => Assert.Equal(pair.First, pair.Second, 1e-5f));
            Assert.Contains(expected.Zip(chain), pair => float.Abs(pair.First - pair.Second) > 1e-3f);
        });
    }
}
