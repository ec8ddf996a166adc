using System;
using System.Linq;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

/// <summary>What every reduction does: one state on every rank, counted traffic and memory as stated, nothing allocated per fold.</summary>
public sealed class ReductionTests
{
    // One row, fewer rows than ranks, rows that no rank count divides; value dims 1 and past a vector.
    private static readonly (int Rows, int ValueDim)[] _shapes = [(0, 4), (1, 1), (3, 17), (32, 128), (41, 5)];

    private static readonly int[] _ranks = [1, 2, 3, 4, 5, 7, 8, 11];
    // Lanes fold inside their own step, and no reduction is made for them.
    private static readonly ReductionKind[] _kinds =
        [.. Enum.GetValues<ReductionKind>().Except([ReductionKind.Auto, ReductionKind.Lanes])];

    // These fold along the canonical tree: the very same bits.
    private static readonly ReductionKind[] _canonical =
        [.. _kinds.Except([ReductionKind.TwoAllReduce, ReductionKind.ThreeAllReduce])];

    public static MatrixTheoryData<ReductionKind, int> All => new(_kinds, _ranks);

    public static MatrixTheoryData<ReductionKind, int> Canonical => new(_canonical, _ranks);

    public static TheoryData<ReductionKind> Kinds => [.. _kinds];

    public static TheoryData<ReductionKind> CanonicalKinds => [.. _canonical];

    [Theory, MemberData(nameof(All))]
    public void Every_rank_gets_the_fold_of_all_states(ReductionKind kind, int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            float[][] results = ReduceRandomStates(ranks, rows, valueDim, kind);

            using var memory = new HostFloats(results[0]);
            PlainFold.OfRandomStates(ranks, rows, valueDim).AssertClose(new PartialAttention(memory.Region, rows, valueDim));
            Assert.All(results, result => Assert.True(Bits.Equal(results[0], result)));
        }
    }

    [Theory, MemberData(nameof(All))]
    public void A_hundred_runs_give_the_same_bits(ReductionKind kind, int ranks)
    {
        float[] first = ReduceRandomStates(ranks, 5, 9, kind)[0];
        RankThreads.Run(ranks, context =>
        {
            using var states = new StateAndReduction(context, kind, 5, 9);
            for (int run = 0; run < 100; run++)
            {
                RandomState.Fill(states.State, context.Transport.Rank);
                states.Reduction.Reduce(states.State);
                Assert.True(Bits.Equal(first, states.State.Region.AsSpan<float>()));
            }
        });
    }

    [Theory, MemberData(nameof(All))]
    public void Traffic_is_what_the_formula_says(ReductionKind kind, int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            var counted = new TrafficForecast[ranks];
            RankThreads.Run(ranks, context =>
            {
                using var states = new StateAndReduction(context, kind, rows, valueDim);
                RandomState.Fill(states.State, context.Transport.Rank);
                Traffic traffic = context.Transport.Traffic;
                traffic.Reset();
                states.Reduction.Reduce(states.State);
                counted[context.Transport.Rank] = new TrafficForecast(traffic.BytesSent, traffic.Messages, traffic.Collectives);
            });

            var busiest = new TrafficForecast(
                counted.Max(one => one.Bytes), counted.Max(one => one.Messages), counted.Max(one => one.Collectives));
            Assert.Equal(ExpectedTraffic.OfReduction(kind, rows, valueDim, new int[ranks]), busiest);
        }
    }

    [Theory, MemberData(nameof(All))]
    public void Peak_memory_is_what_the_formula_says(ReductionKind kind, int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            long[] peaks = new long[ranks];
            RankThreads.Run(ranks, context =>
            {
                using (var states = new StateAndReduction(context, kind, rows, valueDim))
                {
                    RandomState.Fill(states.State, context.Transport.Rank);
                    states.Reduction.Reduce(states.State);
                    peaks[context.Transport.Rank] = context.Device.Memory.PeakBytes - states.State.Region.Bytes;
                }

                Assert.Equal(0, context.Device.Memory.Bytes);
            });

            Assert.Equal(ExpectedTraffic.PeakScratchBytes(kind, rows, valueDim, ranks), peaks.Max());
        }
    }

    [Theory, MemberData(nameof(All))]
    public void A_fold_allocates_no_managed_memory(ReductionKind kind, int ranks) => RankThreads.Run(ranks, context =>
    {
        using var states = new StateAndReduction(context, kind, 8, 16);
        RandomState.Fill(states.State, context.Transport.Rank);
        for (int run = 0; run < 3; run++)
        {
            states.Reduction.Reduce(states.State);
        }

        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int run = 0; run < 30; run++)
        {
            states.Reduction.Reduce(states.State);
        }

        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    });

    [Theory, MemberData(nameof(Kinds))]
    public void A_state_of_another_shape_is_refused(ReductionKind kind) => RankThreads.Run(1, context =>
    {
        using var states = new StateAndReduction(context, kind, 4, 2);
        using var other = new HostFloats(12);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(
            () => states.Reduction.Reduce(new PartialAttention(other.Region, 3, 2)));

        Assert.Contains("4 rows × 2 was given a partial of 3 rows × 2", error.Message, StringComparison.Ordinal);
    });

    [Theory, MemberData(nameof(Canonical))]
    public void The_bits_are_those_of_the_all_gather(ReductionKind kind, int ranks)
    {
        float[] expected = ReduceRandomStates(ranks, 6, 19, ReductionKind.AllGather)[0];

        float[] actual = ReduceRandomStates(ranks, 6, 19, kind)[0];

        Assert.True(Bits.Equal(expected, actual));
    }

    [Theory, MemberData(nameof(Canonical))]
    public void Sibling_ranks_may_swap_their_states(ReductionKind kind, int ranks)
    {
        float[] first = ReduceRandomStates(ranks, 6, 19, kind)[0];

        float[] swapped = Reduce(ranks, 6, 19, kind, rank => rank < 2 && ranks > 1 ? 1 - rank : rank)[0];

        Assert.True(Bits.Equal(first, swapped));
    }

    [Theory, MemberData(nameof(CanonicalKinds))]
    public void Another_order_of_folding_is_noticed(ReductionKind kind)
    {
        float[] first = ReduceRandomStates(8, 6, 19, kind)[0];

        float[] rotated = Reduce(8, 6, 19, kind, rank => (rank + 1) % 8)[0];

        Assert.False(Bits.Equal(first, rotated));
    }

    // In the theories all ranks share one node, so that tree is the whole tree; here they do not.
    // Messages of the busiest rank: a leader sends to other leaders, and the result down to each rank it merged.
    [Theory]
    [InlineData("0,1,2,3", 2)] // four leaders: a butterfly
    [InlineData("0,0,1,1", 2)] // one exchange of leaders, one result down
    [InlineData("0,0,0,0,1,1,1,1", 3)] // one exchange of leaders, two results down
    [InlineData("0,1,0,2,1,0", 4)] // three leaders: the first exchanges, hands back, and sends two results down
    [InlineData("0,0,0,0,0", 3)] // one node: three results down from its leader
    public void Traffic_of_two_levels_follows_the_nodes(string nodeText, int messages)
    {
        int[] nodes = [.. nodeText.Split(',').Select(int.Parse)];
        long[] counted = new long[nodes.Length];
        RankThreads.Run(
            nodes.Length,
            context =>
            {
                using var states = new StateAndReduction(context, ReductionKind.TwoLevel, 3, 5);
                RandomState.Fill(states.State, context.Transport.Rank);
                context.Transport.Traffic.Reset();
                states.Reduction.Reduce(states.State);
                counted[context.Transport.Rank] = context.Transport.Traffic.Messages;
                PlainFold.OfRandomStates(nodes.Length, 3, 5).AssertClose(states.State);
            },
            nodes);

        Assert.Equal(messages, counted.Max());
        Assert.Equal(messages, ExpectedTraffic.OfReduction(ReductionKind.TwoLevel, 3, 5, nodes).Messages);
    }

    private static float[][] ReduceRandomStates(int ranks, int rows, int valueDim, ReductionKind kind) =>
        Reduce(ranks, rows, valueDim, kind, rank => rank);

    private static float[][] Reduce(int ranks, int rows, int valueDim, ReductionKind kind, Func<int, int> stateOf)
    {
        float[][] results = new float[ranks][];
        RankThreads.Run(ranks, context =>
        {
            using var states = new StateAndReduction(context, kind, rows, valueDim);
            RandomState.Fill(states.State, stateOf(context.Transport.Rank));
            states.Reduction.Reduce(states.State);
            results[context.Transport.Rank] = states.State.Region.AsSpan<float>().ToArray();
        });
        return results;
    }
}
