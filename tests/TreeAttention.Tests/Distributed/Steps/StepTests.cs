using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

/// <summary>What a step counts, allocates, refuses and leaves behind.</summary>
public sealed class StepTests
{
    private static readonly AttentionCase _attention = AttentionCases.All[2];

    public static TheoryData<AttentionAlgorithm, ReductionKind, string> Plans
    {
        get
        {
            var data = new TheoryData<AttentionAlgorithm, ReductionKind, string>();
            foreach (ReductionKind kind in Enum.GetValues<ReductionKind>().Where(kind => kind != ReductionKind.Auto))
            {
                data.Add(AttentionAlgorithm.Tree, kind, "replicated");
            }

            foreach (AttentionAlgorithm other in new[]
            {
                AttentionAlgorithm.Ring, AttentionAlgorithm.RingNoOverlap, AttentionAlgorithm.RingQuery, AttentionAlgorithm.Gather,
            })
            {
                data.Add(other, ReductionKind.Auto, "replicated");
                data.Add(other, ReductionKind.Auto, "sharded");
            }

            return data;
        }
    }

    [Theory, MemberData(nameof(Plans))]
    public void Counted_traffic_and_memory_are_what_the_formulas_say(
        AttentionAlgorithm algorithm, ReductionKind reduction, string placement)
    {
        var plan = new AttentionPlan(algorithm, reduction, QueryPlacements.Parse(placement));
        foreach (int ranks in new[] { 1, 2, 3, 4, 5, 8 })
        {
            foreach (AttentionCase attention in AttentionCases.All)
            {
                foreach (ShardLayout layout in LayoutsFor(plan, attention, ranks))
                {
                    (TrafficForecast traffic, long peak) = Measure(attention, layout, plan, ranks);

                    ShardMap shards = attention.ShardsFor(layout, ranks);
                    Assert.Equal(ExpectedTraffic.Of(plan, shards, new int[ranks]), traffic);
                    Assert.Equal(ExpectedTraffic.StepBytes(plan, shards), peak);
                }
            }
        }
    }

    [Fact]
    public void The_ring_sends_p_minus_1_shards_and_the_butterfly_states_times_exchanges()
    {
        // 29 keys over 4 ranks: shards of 8, 7, 7, 7 keys; the busiest rank sends all but one of 7.
        ShardMap shards = _attention.ShardsFor(ShardLayout.Contiguous, 4);
        long keyBytes = 2 * 2 * (5 + 3) * sizeof(float);
        long stateBytes = 2 * 4 * 3 * (3 + 2) * sizeof(float);
        var ring = new AttentionPlan(AttentionAlgorithm.Ring, ReductionKind.Auto, QueryPlacement.Replicated);
        var butterfly = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Butterfly, QueryPlacement.Replicated);

        Assert.Equal(new TrafficForecast((8 + 7 + 7) * keyBytes, 3, 0), ExpectedTraffic.Of(ring, shards, [0, 0, 0, 0]));
        Assert.Equal(new TrafficForecast(2 * stateBytes, 2, 0), ExpectedTraffic.Of(butterfly, shards, [0, 0, 0, 0]));
        Assert.Equal((2 * 8 * keyBytes) + (2 * stateBytes), ExpectedTraffic.StepBytes(ring, shards));
    }

    [Fact]
    public void Gathering_sends_each_shard_once_and_holds_all_keys_again()
    {
        ShardMap uneven = _attention.ShardsFor(ShardLayout.Contiguous, 4);
        ShardMap equal = _attention.ShardsFor(ShardLayout.Lengths([29]), 1);
        long keyBytes = 2 * 2 * (5 + 3) * sizeof(float);
        long stateBytes = 2 * 4 * 3 * (3 + 2) * sizeof(float);
        var gather = new AttentionPlan(AttentionAlgorithm.Gather, ReductionKind.Auto, QueryPlacement.Replicated);

        Assert.Equal(new TrafficForecast(8 * keyBytes, 0, 4), ExpectedTraffic.Of(gather, uneven, [0, 0, 0, 0]));
        Assert.Equal((29 * keyBytes) + stateBytes, ExpectedTraffic.StepBytes(gather, uneven));
        Assert.Equal(default, ExpectedTraffic.Of(gather, equal, [0]));
    }

    [Fact]
    public void Gathering_has_the_bits_of_a_rank_that_holds_all_keys()
    {
        var attention = new AttentionCase("gathered", new AttentionShape(1, 6, 2048, 2, 1, 8, 8), new AttentionOptions { Causal = true });
        var gather = new AttentionPlan(AttentionAlgorithm.Gather, ReductionKind.Auto, QueryPlacement.Replicated);
        AttentionPlan single = gather with { Algorithm = AttentionAlgorithm.Single };

        float[] whole = RankThreads.Attend(attention, ShardLayout.Contiguous, single, 1)[0].State;

        // Shards of whole pages: the same pages in the same order.
        Assert.All(RankThreads.Attend(attention, ShardLayout.Contiguous, gather, 4), rank => Assert.True(Bits.Equal(whole, rank.State)));
        Assert.All(RankThreads.Attend(attention, ShardLayout.Lanes, gather, 3), rank => Assert.True(Bits.Equal(whole, rank.State)));
    }

    [Fact]
    public void The_papers_formulas_are_those_of_its_section_on_volume()
    {
        Assert.Equal(2.0 * 1 * 1000 * 2048 * 8, ExpectedTraffic.PaperRingElements(1, 1000, 2048, 8));
        Assert.Equal(2 * 7 / 8.0 * (2048 + (2 * 16)), ExpectedTraffic.PaperTreeElements(1, 2048, 16, 8));
    }

    [Theory, MemberData(nameof(Plans))]
    public void A_run_allocates_no_managed_memory(AttentionAlgorithm algorithm, ReductionKind reduction, string placement)
    {
        var plan = new AttentionPlan(algorithm, reduction, QueryPlacements.Parse(placement));
        ShardLayout layout = reduction == ReductionKind.Lanes ? ShardLayout.Lanes : ShardLayout.Zigzag;

        RankThreads.Run(3, context => WithStep(context, _attention, layout, plan, (step, queries, shard) =>
        {
            step.Run(queries, shard);
            step.Run(queries, shard);
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int run = 0; run < 10; run++)
            {
                step.Run(queries, shard);
            }

            Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
        }));
    }

    [Theory, MemberData(nameof(Plans))]
    public void A_second_run_gives_the_same_bits_and_its_own_times(
        AttentionAlgorithm algorithm, ReductionKind reduction, string placement)
    {
        var plan = new AttentionPlan(algorithm, reduction, QueryPlacements.Parse(placement));
        ShardLayout layout = reduction == ReductionKind.Lanes ? ShardLayout.Lanes : ShardLayout.Zigzag;

        RankThreads.Run(3, context => WithStep(context, _attention, layout, plan, (step, queries, shard) =>
        {
            float[] first = step.Run(queries, shard).Region.AsSpan<float>().ToArray();
            for (int run = 0; run < 20; run++)
            {
                Assert.True(Bits.Equal(first, step.Run(queries, shard).Region.AsSpan<float>()));
            }

            Assert.True(step.Times.ComputeTicks > 0 && step.Times.CommunicationTicks > 0);
            Assert.Equal(reduction, step.Reduction);
        }));
    }

    [Theory]
    [InlineData(AttentionAlgorithm.Tree, "compute,butterfly exchange")]
    [InlineData(AttentionAlgorithm.RingNoOverlap, "compute,ring hop,compute")]
    [InlineData(AttentionAlgorithm.Ring, "ring hop,compute,ring hop,compute")]
    [InlineData(AttentionAlgorithm.Gather, "gather,compute")]
    public void The_control_plane_learns_each_operation(AttentionAlgorithm algorithm, string operations)
    {
        var plan = new AttentionPlan(algorithm, ReductionKind.Butterfly, QueryPlacement.Replicated);

        RankThreads.Run(2, context =>
        {
            using var control = new RecordingControlPlane(context.Control);
            WithStep(context with { Control = control }, _attention, ShardLayout.Contiguous, plan, (step, queries, shard) =>
            {
                step.Run(queries, shard);

                Assert.Equal(operations.Split(','), control.Operations);
                Assert.Equal(0, control.Open);
            });
        });
    }

    private static IEnumerable<ShardLayout> LayoutsFor(AttentionPlan plan, AttentionCase attention, int ranks) =>
        plan.Reduction == ReductionKind.Lanes
            ? [ShardLayout.Lanes]
            : AttentionCases.LayoutsFor(attention.Shape, ranks).Where(layout => plan.Placement == QueryPlacement.Replicated
                || attention.Shape.QueryLength == attention.Shape.KeyLength || !layout.Name.StartsWith("lengths", StringComparison.Ordinal));

    private static (TrafficForecast Traffic, long Peak) Measure(AttentionCase attention, ShardLayout layout, AttentionPlan plan, int ranks)
    {
        var counted = new TrafficForecast[ranks];
        long[] peaks = new long[ranks];
        RankThreads.Run(ranks, context =>
        {
            int rank = context.Transport.Rank;
            long before = 0;
            WithStep(
                context, attention, layout, plan,
                (step, queries, shard) =>
                {
                    Traffic traffic = context.Transport.Traffic;
                    peaks[rank] = context.Device.Memory.PeakBytes - before;
                    traffic.Reset();
                    step.Run(queries, shard);
                    counted[rank] = new TrafficForecast(traffic.BytesSent, traffic.Messages, traffic.Collectives);
                },
                () => before = context.Device.Memory.Bytes);
        });
        return (
            new TrafficForecast(counted.Max(one => one.Bytes), counted.Max(one => one.Messages), counted.Max(one => one.Collectives)),
            peaks.Max());
    }

    private static void WithStep(
        RankContext context, AttentionCase attention, ShardLayout layout, AttentionPlan plan,
        Action<AttentionStep, QueryBlock, KeyValueShard> body, Action? beforeCreate = null)
    {
        ShardMap shards = attention.ShardsFor(layout, context.Transport.Size);
        int[] indices = QueryLayout.IndicesOf(plan.Placement, layout, attention.Shape, context.Transport.Rank, context.Transport.Size);
        QueryBlock queries = attention.QueriesOn(context.Device, indices);
        KeyValueShard shard = attention.ShardOn(context.Device, shards, context.Transport.Rank);
        beforeCreate?.Invoke();
        using AttentionStep step = StepFactory.Create(context, attention.Problem, shards, plan, indices.Length);
        body(step, queries, shard);
    }
}
