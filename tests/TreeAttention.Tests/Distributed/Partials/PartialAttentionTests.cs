using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Distributed.Partials;

public sealed class PartialAttentionTests
{
    public static TheoryData<int> ValueDims => [1, 3, 15, 16, 17, 64, 133];

    [Theory, MemberData(nameof(ValueDims))]
    public void The_empty_state_changes_no_bit_from_either_side(int dim)
    {
        using var states = new RandomStates(9, dim, 1);
        PartialAttention state = states.Full();
        PartialAttention left = states.Empty();
        PartialAttention right = states.Copy(state);

        left.MergeFrom(state);
        right.MergeFrom(states.Empty());

        Assert.Equal(Bits(state), Bits(left));
        Assert.Equal(Bits(state), Bits(right));
    }

    [Fact]
    public void Empty_and_empty_are_empty()
    {
        using var states = new RandomStates(3, 5, 1);
        PartialAttention state = states.Empty();

        state.MergeFrom(states.Empty());

        Assert.Equal(Bits(states.Empty()), Bits(state));
    }

    [Theory, MemberData(nameof(ValueDims))]
    public void Exchanging_the_operands_changes_no_bit(int dim)
    {
        for (int seed = 0; seed < 40; seed++)
        {
            using var states = new RandomStates(17, dim, seed);
            (PartialAttention first, PartialAttention second) = (states.Full(), states.Full());
            (PartialAttention left, PartialAttention right) = (states.Copy(first), states.Copy(second));

            left.MergeFrom(second);
            right.MergeFrom(first);

            Assert.Equal(Bits(left), Bits(right));
        }
    }

    [Theory, MemberData(nameof(ValueDims))]
    public void Exchanging_the_operands_changes_no_bit_but_those_inside_NaN_even_for_wild_numbers(int dim)
    {
        for (int seed = 0; seed < 200; seed++)
        {
            using var states = new RandomStates(17, dim, seed);
            (PartialAttention first, PartialAttention second) = (states.Wild(), states.Wild());
            (PartialAttention left, PartialAttention right) = (states.Copy(first), states.Copy(second));

            left.MergeFrom(second);
            right.MergeFrom(first);

            (int[] leftBits, int[] rightBits) = (Canonical(left), Canonical(right));
            int different = leftBits.Zip(rightBits).TakeWhile(pair => pair.First == pair.Second).Count();
            Assert.True(different == leftBits.Length, $"seed {seed}, value dim {dim}: differ at {different} of {leftBits.Length}");
        }
    }

    [Theory, InlineData(1), InlineData(2), InlineData(3), InlineData(7), InlineData(64), InlineData(133)]
    public void Any_order_and_any_tree_give_the_mean_in_double_precision(int parts)
    {
        const int rows = 5;
        const int dim = 7;
        using var states = new RandomStates(rows, dim, parts);
        PartialAttention[] all = [.. Enumerable.Range(0, 2 * parts).Select(i => i % 2 == 0 ? states.Full() : states.Empty())];
        (double[] outputs, double[] logSumExps) = InDouble(all, rows, dim);
        var random = new Random(parts);
        for (int trial = 0; trial < 5; trial++)
        {
            var open = new List<PartialAttention>(all.Select(states.Copy));
            while (open.Count > 1)
            {
                int into = random.Next(open.Count);
                int from = (into + 1 + random.Next(open.Count - 1)) % open.Count;
                open[into].MergeFrom(open[from]);
                open.RemoveAt(from);
            }

            // Each of up to 133 merges rounds a weighted mean of numbers below 1 a few times.
            Assert.All(outputs.Index(), element => Assert.Equal(element.Item, open[0].Output[element.Index], 2e-6));
            Assert.All(logSumExps.Index(), row =>
                Assert.Equal(row.Item, open[0].Max[row.Index] + Math.Log(open[0].Sum[row.Index]), 1e-5));
        }
    }

    [Theory, InlineData(6e4f), InlineData(1e6f), InlineData(-1e6f), InlineData(3e38f)]
    public void Large_equal_scores_do_not_round_the_sum_away(float score)
    {
        const int parts = 37;
        using var states = new RandomStates(1, 1, 1);
        PartialAttention whole = states.Empty();
        for (int part = 0; part < parts; part++)
        {
            PartialAttention one = states.Empty();
            (one.Output[0], one.Max[0], one.Sum[0]) = (part, score, 1);
            whole.MergeFrom(one);
        }

        Assert.Equal(parts, whole.Sum[0]);
        Assert.Equal(score, whole.Max[0]);
        Assert.Equal((parts - 1) / 2f, whole.Output[0], 1e-4f);
    }

    [Theory, MemberData(nameof(ValueDims))]
    public void Equal_outputs_stay_equal_to_the_bit(int dim)
    {
        for (int seed = 0; seed < 50; seed++)
        {
            using var states = new RandomStates(11, dim, seed);
            (PartialAttention first, PartialAttention second) = (states.Full(), states.Full());
            first.Output.CopyTo(second.Output);
            float[] expected = first.Output.ToArray();

            first.MergeFrom(second);

            Assert.Equal(expected, first.Output.ToArray());
        }
    }

    [Theory, MemberData(nameof(ValueDims))]
    public void The_largest_values_stay_finite(int dim)
    {
        using var states = new RandomStates(11, dim, 3);
        (PartialAttention first, PartialAttention second) = (states.Full(), states.Full());
        first.Output.Fill(float.MaxValue);
        second.Output.Fill(-float.MaxValue);
        second.Output[0] = float.MaxValue;

        first.MergeFrom(second);

        Assert.All(first.Output.ToArray(), element => Assert.True(float.IsFinite(element)));
        Assert.Equal(float.MaxValue, first.Output[0]);
    }

    [Theory, MemberData(nameof(ValueDims))]
    public void A_NaN_of_either_side_is_never_hidden(int dim)
    {
        using var states = new RandomStates(2, dim, 3);
        (PartialAttention first, PartialAttention second) = (states.Full(), states.Full());
        first.Output[0] = float.NaN;
        second.Output[^1] = float.NaN;

        first.MergeFrom(second);

        Assert.True(float.IsNaN(first.Output[0]));
        Assert.True(float.IsNaN(first.Output[^1]));
        Assert.Equal(2, first.Output.ToArray().Count(float.IsNaN));
    }

    [Fact]
    public void States_of_different_shape_are_refused_with_both_shapes()
    {
        using var states = new RandomStates(4, 64, 1);
        using var others = new RandomStates(2, 64, 1);

        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => states.Full().MergeFrom(others.Full()));

        Assert.Contains("2 rows × 64 into one of 4 rows × 64", error.Message, StringComparison.Ordinal);
    }

    private static int[] Bits(PartialAttention state) => state.Region.AsSpan<int>().ToArray();

    private static int[] Canonical(PartialAttention state) =>
        [.. state.Region.AsSpan<float>().ToArray().Select(x => BitConverter.SingleToInt32Bits(float.IsNaN(x) ? float.NaN : x))];

    private static (double[] Outputs, double[] LogSumExps) InDouble(PartialAttention[] parts, int rows, int dim)
    {
        double[] outputs = new double[rows * dim];
        double[] logSumExps = new double[rows];
        for (int row = 0; row < rows; row++)
        {
            double[] weights = [.. parts.Select(part => part.Sum[row] == 0 ? 0 : part.Sum[row] * Math.Exp(part.Max[row]))];
            logSumExps[row] = Math.Log(weights.Sum());
            for (int i = row * dim; i < (row + 1) * dim; i++)
            {
                outputs[i] = parts.Select((part, which) => weights[which] * part.Output[i]).Sum() / weights.Sum();
            }
        }

        return (outputs, logSumExps);
    }
}
