using System;
using System.Collections.Concurrent;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

public sealed class DecodeBitsTests
{
    private static readonly DecodeCase _decode = new("bits of decode")
    {
        Before = [1700, 2048, 900],
        Padding = [0, 0, 0],
        NewTokens = 2,
        QueryLength = 2,
        Options = new AttentionOptions { Causal = true },
        Type = ElementType.BFloat16,
    };

    [Fact]
    public void Reproducible_decode_has_the_same_bits_on_any_ranks_with_any_neighbours_and_as_attend_has()
    {
        float[] expected = AttendOver(row: 1);
        foreach (int ranks in (int[])[1, 2, 3, 4, 5, 7, 8])
        {
            var seen = new ConcurrentBag<float[]>();
            CacheRanks.Run(ranks, context =>
            {
                using var cache = new ShardedKvCache(context, _decode.CacheOptions);
                _decode.Fill(cache, 611);
                using var step = new DecodeStep(context, cache, _decode.DecodeOptions(ReductionKind.Lanes));
                (float[] output, float[] lse) = _decode.RunLast(step);
                seen.Add([.. output.AsSpan(2 * 6 * 16, 2 * 6 * 16), .. lse.AsSpan(2 * 6, 2 * 6)]);
            });

            Assert.All(seen, bits => Assert.Equal(expected, bits));
        }
    }

    [Fact]
    public void Another_reduction_has_other_bits()
    {
        // The comparison above can fail: the plain tree does not keep the bits of the lanes.
        float[] expected = AttendOver(row: 1);
        CacheRanks.Run(3, context =>
        {
            using var cache = new ShardedKvCache(context, _decode.CacheOptions);
            _decode.Fill(cache, 611);
            using var step = new DecodeStep(context, cache, _decode.DecodeOptions(ReductionKind.Butterfly));
            (float[] output, float[] lse) = _decode.RunLast(step);
            Assert.NotEqual(expected, (float[])[.. output.AsSpan(2 * 6 * 16, 2 * 6 * 16), .. lse.AsSpan(2 * 6, 2 * 6)]);
        });
    }

    public static TheoryData<AttentionAlgorithm, ReductionKind> Plans => new()
    {
        { AttentionAlgorithm.Tree, ReductionKind.ThreeAllReduce },
        { AttentionAlgorithm.Tree, ReductionKind.TwoAllReduce },
        { AttentionAlgorithm.Tree, ReductionKind.Fused },
        { AttentionAlgorithm.Tree, ReductionKind.AllGather },
        { AttentionAlgorithm.Tree, ReductionKind.Butterfly },
        { AttentionAlgorithm.Tree, ReductionKind.TwoLevel },
        { AttentionAlgorithm.Tree, ReductionKind.AllToAll },
        { AttentionAlgorithm.Tree, ReductionKind.OneShot },
        { AttentionAlgorithm.Tree, ReductionKind.Lanes },
        { AttentionAlgorithm.Ring, ReductionKind.Auto },
        { AttentionAlgorithm.RingNoOverlap, ReductionKind.Auto },
        { AttentionAlgorithm.RingQuery, ReductionKind.Auto },
        { AttentionAlgorithm.Gather, ReductionKind.Auto },
    };

    [Theory, MemberData(nameof(Plans))]
    public void A_step_allocates_nothing_also_where_pages_begin(AttentionAlgorithm algorithm, ReductionKind reduction)
    {
        // A lock makes its event when two threads first meet at it, which is the runtime's and comes once; what a step allocates comes every time.
        long[] allocated = AllocatedBySteps(algorithm, reduction);
        for (int again = 0; again < 2 && allocated.Sum() > 0; again++)
        {
            allocated = AllocatedBySteps(algorithm, reduction);
        }

        Assert.Equal([0, 0], allocated);
    }

    [Theory]
    [InlineData(ReductionKind.ThreeAllReduce)]
    [InlineData(ReductionKind.TwoAllReduce)]
    public void Sums_of_numerators_stay_finite_and_exact_as_values_grow(ReductionKind reduction)
    {
        foreach (float size in (float[])[1e-33f, 2f, 3e38f])
        {
            var decode = new DecodeCase("values") { Before = [40, 600], ValueDim = 3, ValueSize = size };
            CacheRanks.Run(3, context =>
            {
                using var cache = new ShardedKvCache(context, decode.CacheOptions);
                using var step = new DecodeStep(context, cache, decode.DecodeOptions(reduction)); // made before it is known how large values are
                decode.Fill(cache, 600);
                (float[] output, float[] lse) = decode.RunLast(step);

                VerificationReport report = decode.Check(output, lse);
                Assert.True(report.Wrong == 0, $"{size}: {report.WorstRow}");
            });
        }
    }

    // The row alone, as `attend --reproducible` computes it over a loaded shard on one rank.
    private static float[] AttendOver(int row)
    {
        int length = _decode.Before[row] + _decode.NewTokens;
        var shape = new AttentionShape(1, 2, length, 6, 2, 16, 16);
        var problem = new AttentionProblem(shape, _decode.Options);
        float[] result = [];
        using var key = new HostTensor("key", ElementType.Float32, [1, length, 2, 16], Doubles(_decode.KeyOf(row), length));
        using var value = new HostTensor("value", ElementType.Float32, [1, length, 2, 16], Doubles(_decode.ValueOf(row), length));
        using var query = new HostTensor(
            "query", ElementType.Float32, [1, 2, 6, 16], [.. _decode.Query.AsSpan(row * 2 * 6 * 16, 2 * 6 * 16).ToArray().Select(x => (double)x)]);
        CacheRanks.Run(1, context =>
        {
            var shards = new ShardMap(shape, ShardLayout.Lanes, 1, ElementType.BFloat16, false);
            KeyValueShard shard = KeyValueLoader.Load(context.Device, shards.PlanOf(0), key.View, value.View, NonFinitePolicy.Error);
            QueryBlock queries = QueryLoader.Load(context.Device, shape, query.View, [0, 1], NonFinitePolicy.Error);
            using AttentionStep step = StepFactory.Create(
                context, problem, shards, new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated), 2);
            float[] output = new float[2 * 6 * 16];
            float[] lse = new float[12];
            AttentionEdge.Finish(problem, queries.Indices, step.Run(queries, shard), output, lse);
            result = [.. output, .. lse];
        });
        return result;
    }

    private static double[] Doubles(float[] numbers, int length) => [.. numbers.Take(length * 2 * 16).Select(x => (double)x)];

    private static long[] AllocatedBySteps(AttentionAlgorithm algorithm, ReductionKind reduction)
    {
        var decode = new DecodeCase("allocations") { Before = [1020, 505], NewTokens = 1, Rotary = new RotaryOptions(8) };
        long[] allocated = new long[2];

        CacheRanks.Run(2, context =>
        {
            using var cache = new ShardedKvCache(context, decode.CacheOptions with { MaxLength = 2000 });
            decode.Fill(cache, 512);
            using var step = new DecodeStep(context, cache, decode.DecodeOptions(reduction, algorithm));
            (float[] key, float[] value) = decode.LastTokens();
            float[] query = decode.Query;
            float[] output = new float[2 * 6 * 16];
            float[] lse = new float[12];
            for (int warm = 0; warm < 2; warm++)
            {
                step.Run(0, query, key, value, output, lse);
            }

            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < 12; i++)
            {
                step.Run(0, query, key, value, output, lse);
            }

            allocated[context.Transport.Rank] = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.Equal(1034, cache.LengthOf(0));
        });

        return allocated;
    }
}
