using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

/// <summary>Every algorithm, reduction, layout and rank count gives what dense float64 attention gives.</summary>
public sealed class AgreementTests
{
    private const double Bound = 1e-5; // of the row's scale, fp32

    public static TheoryData<int, int> CasesAndRanks
    {
        get
        {
            var data = new TheoryData<int, int>();
            foreach (int ranks in new[] { 1, 2, 3, 4, 5, 8 })
            {
                for (int i = 0; i < AttentionCases.All.Count; i++)
                {
                    data.Add(i, ranks);
                }
            }

            return data;
        }
    }

    [Theory, MemberData(nameof(CasesAndRanks))]
    public void Every_plan_agrees_with_dense_attention(int index, int ranks)
    {
        AttentionCase attention = AttentionCases.All[index];
        var oracle = new AttentionOracle(attention);
        foreach (ShardLayout layout in AttentionCases.LayoutsFor(attention.Shape, ranks))
        {
            AttentionPlan[] plans = [.. PlansFor(attention.Shape, layout)];
            var states = new (float[] State, int[] Indices)[plans.Length, ranks];
            RankThreads.Run(ranks, context =>
            {
                for (int i = 0; i < plans.Length; i++)
                {
                    states[i, context.Transport.Rank] = RankThreads.Attend(attention, layout, plans[i], context);
                }
            });

            for (int i = 0; i < plans.Length; i++)
            {
                for (int rank = 0; rank < ranks; rank++)
                {
                    double error = oracle.ErrorOf(states[i, rank].State, states[i, rank].Indices);
                    Assert.True(error <= Bound, $"{attention}, {layout}, {plans[i]}, rank {rank} of {ranks}: error {error}");
                }
            }
        }
    }

    [Fact]
    public void Two_levels_agree_on_any_nodes()
    {
        AttentionCase attention = AttentionCases.All[2];
        var oracle = new AttentionOracle(attention);
        var plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.TwoLevel, QueryPlacement.Replicated);
        foreach (int[] nodes in new int[][] { [0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 2, 3], [0, 0, 0, 1, 1], [0, 1, 1, 2, 1, 1, 1, 0] })
        {
            (float[] State, int[] Indices)[] fromTransport = RankThreads.Attend(attention, ShardLayout.Contiguous, plan, nodes.Length, nodes);
            (float[] State, int[] Indices)[] overridden =
                RankThreads.Attend(attention, ShardLayout.Contiguous, plan with { Nodes = nodes }, nodes.Length);

            Assert.All(fromTransport, result => Assert.InRange(oracle.ErrorOf(result.State, result.Indices), 0, Bound));
            Assert.All(overridden, result => Assert.Equal(fromTransport[0].State, result.State));
        }
    }

    [Theory, InlineData(1e30f), InlineData(3e38f), InlineData(1e-35f)]
    public void Extreme_values_neither_overflow_nor_vanish(float scale)
    {
        var attention = new AttentionCase("extreme", new AttentionShape(1, 2, 37, 2, 1, 4, 3), new AttentionOptions(), valueScale: scale);
        var oracle = new AttentionOracle(attention);
        foreach (ReductionKind kind in new[] { ReductionKind.ThreeAllReduce, ReductionKind.TwoAllReduce, ReductionKind.Butterfly })
        {
            var plan = new AttentionPlan(AttentionAlgorithm.Tree, kind, QueryPlacement.Replicated);

            (float[] State, int[] Indices)[] results = RankThreads.Attend(attention, ShardLayout.Striped, plan, 3);

            Assert.All(results, result => Assert.InRange(oracle.ErrorOf(result.State, result.Indices), 0, Bound));
        }
    }

    [Fact]
    public void The_comparison_notices_a_dropped_shard_a_double_merge_and_base_2()
    {
        AttentionCase attention = AttentionCases.All[2];
        var oracle = new AttentionOracle(attention);
        var plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Butterfly, QueryPlacement.Replicated);
        (float[] right, int[] indices) = RankThreads.Attend(attention, ShardLayout.Contiguous, plan, 2)[0];
        int rows = right.Length / (attention.Shape.ValueDim + 2);

        float[] dropped = LocalState(attention, rank: 0);
        float[] twice = [.. right];
        float[] base2 = [.. right];
        for (int row = 0; row < rows; row++)
        {
            twice[^(row + 1)] *= 2; // a state merged with itself: the same output, twice the sum
            base2[^(row + 1 + rows)] *= 1.442695f;
        }

        Assert.InRange(oracle.ErrorOf(right, indices), 0, Bound);
        Assert.True(oracle.ErrorOf(dropped, indices) > 100 * Bound);
        Assert.True(oracle.ErrorOf(twice, indices) > 100 * Bound);
        Assert.True(oracle.ErrorOf(base2, indices) > 100 * Bound);
        Assert.True(oracle.ErrorOf([.. right.Select((value, i) => i == 5 ? float.NaN : value)], indices) > 100 * Bound);
    }

    private static float[] LocalState(AttentionCase attention, int rank)
    {
        using var device = new PlainDevice();
        KeyValueShard shard = attention.ShardOn(device, attention.ShardsFor(ShardLayout.Contiguous, 2), rank);
        QueryBlock queries = attention.QueriesOn(device, [.. Enumerable.Range(0, attention.Shape.QueryLength)]);
        int rows = queries.RowsFor(attention.Shape);
        Region region = device.Allocate(PartialAttention.FloatsFor(rows, attention.Shape.ValueDim) * sizeof(float), ElementType.Float32);
        device.Attend(attention.Problem, queries, shard, new PartialAttention(region, rows, attention.Shape.ValueDim));
        return region.AsSpan<float>().ToArray();
    }

    private static IEnumerable<AttentionPlan> PlansFor(AttentionShape shape, ShardLayout layout)
    {
        foreach (ReductionKind kind in Enum.GetValues<ReductionKind>())
        {
            if (kind != ReductionKind.Lanes || layout == ShardLayout.Lanes)
            {
                yield return new AttentionPlan(AttentionAlgorithm.Tree, kind, QueryPlacement.Replicated);
            }
        }

        yield return new AttentionPlan(AttentionAlgorithm.Single, ReductionKind.Auto, QueryPlacement.Replicated);
        bool canShard = shape.QueryLength == shape.KeyLength || !layout.Name.StartsWith("lengths", StringComparison.Ordinal);
        QueryPlacement[] placements = canShard ? [QueryPlacement.Replicated, QueryPlacement.Sharded] : [QueryPlacement.Replicated];
        foreach (QueryPlacement placement in placements)
        {
            yield return new AttentionPlan(AttentionAlgorithm.Ring, ReductionKind.Auto, placement);
            yield return new AttentionPlan(AttentionAlgorithm.RingNoOverlap, ReductionKind.Auto, placement);
            yield return new AttentionPlan(AttentionAlgorithm.RingQuery, ReductionKind.Auto, placement);
            yield return new AttentionPlan(AttentionAlgorithm.Gather, ReductionKind.Auto, placement);
        }
    }
}
