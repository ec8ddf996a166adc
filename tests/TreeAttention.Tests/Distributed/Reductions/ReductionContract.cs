using System;
using System.Linq;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using TreeAttention.Testing.Tensors;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

/// <summary>What every reduction does: one state on every rank, counted traffic and memory as stated, nothing allocated per fold.</summary>
public abstract class ReductionContract
{
    // One row, fewer rows than ranks, rows that no rank count divides; value dims 1 and past a vector.
    private static readonly (int Rows, int ValueDim)[] _shapes = [(0, 4), (1, 1), (3, 17), (32, 128), (41, 5)];

    public static TheoryData<int> RankCounts => [1, 2, 3, 4, 5, 7, 8, 11];

    private protected abstract ReductionKind Kind { get; }

    [Theory, MemberData(nameof(RankCounts))]
    public void Every_rank_gets_the_fold_of_all_states(int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            float[][] results = ReduceRandomStates(ranks, rows, valueDim, Kind);

            using var memory = new HostFloats(results[0]);
            PlainFold.OfRandomStates(ranks, rows, valueDim).AssertClose(new PartialAttention(memory.Region, rows, valueDim));
            Assert.All(results, result => Assert.True(Bits.Equal(results[0], result)));
        }
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void A_hundred_runs_give_the_same_bits(int ranks)
    {
        float[] first = ReduceRandomStates(ranks, 5, 9, Kind)[0];
        RankThreads.Run(ranks, context =>
        {
            using var states = new StateAndReduction(context, Kind, 5, 9);
            for (int run = 0; run < 100; run++)
            {
                RandomState.Fill(states.State, context.Transport.Rank);
                states.Reduction.Reduce(states.State);
                Assert.True(Bits.Equal(first, states.State.Region.AsSpan<float>()));
            }
        });
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void Traffic_is_what_the_formula_says(int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            var counted = new TrafficForecast[ranks];
            RankThreads.Run(ranks, context =>
            {
                using var states = new StateAndReduction(context, Kind, rows, valueDim);
                RandomState.Fill(states.State, context.Transport.Rank);
                Traffic traffic = context.Transport.Traffic;
                traffic.Reset();
                states.Reduction.Reduce(states.State);
                counted[context.Transport.Rank] = new TrafficForecast(traffic.BytesSent, traffic.Messages, traffic.Collectives);
            });

            var busiest = new TrafficForecast(
                counted.Max(one => one.Bytes), counted.Max(one => one.Messages), counted.Max(one => one.Collectives));
            Assert.Equal(ExpectedTraffic.OfReduction(Kind, rows, valueDim, new int[ranks]), busiest);
        }
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void Peak_memory_is_what_the_formula_says(int ranks)
    {
        foreach ((int rows, int valueDim) in _shapes)
        {
            long[] peaks = new long[ranks];
            RankThreads.Run(ranks, context =>
            {
                using (var states = new StateAndReduction(context, Kind, rows, valueDim))
                {
                    RandomState.Fill(states.State, context.Transport.Rank);
                    states.Reduction.Reduce(states.State);
                    peaks[context.Transport.Rank] = context.Device.Memory.PeakBytes - states.State.Region.Bytes;
                }

                Assert.Equal(0, context.Device.Memory.Bytes);
            });

            Assert.Equal(ExpectedTraffic.PeakScratchBytes(Kind, rows, valueDim, ranks), peaks.Max());
        }
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void A_fold_allocates_no_managed_memory(int ranks) => RankThreads.Run(ranks, context =>
    {
        using var states = new StateAndReduction(context, Kind, 8, 16);
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

    [Fact]
    public void A_state_of_another_shape_is_refused() => RankThreads.Run(1, context =>
    {
        using var states = new StateAndReduction(context, Kind, 4, 2);
        using var other = new HostFloats(12);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(
            () => states.Reduction.Reduce(new PartialAttention(other.Region, 3, 2)));

        Assert.Contains("4 rows × 2 was given a partial of 3 rows × 2", error.Message, StringComparison.Ordinal);
    });

    private protected static float[][] ReduceRandomStates(int ranks, int rows, int valueDim, ReductionKind kind) =>
        Reduce(ranks, rows, valueDim, kind, rank => rank);

    private protected static float[][] Reduce(int ranks, int rows, int valueDim, ReductionKind kind, Func<int, int> stateOf)
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
