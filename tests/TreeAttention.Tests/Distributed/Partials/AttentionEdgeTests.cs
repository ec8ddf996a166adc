using System;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Distributed.Partials;

public sealed class AttentionEdgeTests
{
    private const float Minus = float.NegativeInfinity;

    [Fact]
    public void Rows_take_the_order_of_the_tensors()
    {
        var shape = new AttentionShape(2, 5, 4, 6, 3, 8, 7);
        int[] indices = [4, 0, 2];
        using var states = new RandomStates(2 * 6 * 3, 7, 1);
        PartialAttention state = states.Full();
        float[] output = new float[state.Output.Length];
        float[] lse = new float[state.Rows];

        AttentionEdge.Finish(new AttentionProblem(shape, new AttentionOptions()), indices, state, output, lse);

        for (int row = 0; row < state.Rows; row++)
        {
            (int batch, int head, int place) = (row / 18, row / 3 % 6, row % 3);
            int target = (((batch * 3) + place) * 6) + head;
            Assert.Equal(state.Output.Slice(row * 7, 7).ToArray(), output.AsSpan(target * 7, 7).ToArray());
            Assert.Equal((float)(state.Max[row] + Math.Log(state.Sum[row])), lse[row]);
        }
    }

    [Theory]
    [InlineData(2f, 3f, 0.5f)]
    [InlineData(2f, 3f, 1e30f)]
    [InlineData(2f, 3f, -1e30f)]
    [InlineData(2f, 3f, Minus)]
    [InlineData(-1e6f, 40f, -1e6f)]
    [InlineData(700f, 1f, 800f)]
    [InlineData(800f, 2f, 700f)]
    public void A_sink_is_one_more_key_without_a_value(float max, float sum, float sink)
    {
        (float[] output, float lse) = Finish(max, sum, 1.5f, sink);

        double top = Math.Max(max, sink);
        double whole = (sum * Math.Exp(max - top)) + Math.Exp(sink - top);
        Assert.Equal((float)(1.5 * sum * Math.Exp(max - top) / whole), output[0], 1e-7f);
        Assert.Equal((float)(top + Math.Log(whole)), lse);
    }

    [Theory]
    [InlineData(1e20)]
    [InlineData(2e36)]
    [InlineData(-2e36)]
    [InlineData(3e38)]
    [InlineData(-1e60)]
    [InlineData(1e115)]
    public void The_log_sum_exp_of_any_score_is_the_score_or_the_largest_float(double score)
    {
        (_, float lse) = Finish((float)ScoreRange.Settle(score), 1, 1.5f, Minus);

        Assert.Equal(Math.Clamp(score, -float.MaxValue, float.MaxValue), lse, 5e-6 * Math.Abs((double)lse));
    }

    [Fact]
    public void A_sink_is_compared_with_the_score_and_not_with_its_settled_form()
    {
        (float[] output, _) = Finish((float)ScoreRange.Settle(1e40), 1, 1.5f, 3e38f);
        (float[] outweighed, float lse) = Finish((float)ScoreRange.Settle(2e38), 1, 1.5f, 3e38f);

        Assert.Equal([1.5f], output);
        Assert.Equal([0f], outweighed);
        Assert.Equal(3e38f, lse);
    }

    [Fact]
    public void A_row_without_keys_is_zero_with_its_sink_as_lse()
    {
        (float[] output, float lse) = Finish(Minus, 0, 0, -3.5f);

        Assert.Equal([0f], output);
        Assert.Equal(-3.5f, lse);
    }

    [Fact]
    public void A_row_without_keys_and_sink_is_zero_with_minus_infinity()
    {
        (float[] output, float lse) = Finish(Minus, 0, 0, null);

        Assert.Equal([0f], output);
        Assert.Equal(Minus, lse);
    }

    [Theory]
    [InlineData(2f, 3f, null, 1f)]
    [InlineData(-1e6f, 40f, 0.5f, 1f)]
    [InlineData(Minus, 0f, -3.5f, 1f)]
    [InlineData(Minus, 0f, null, 1f)]
    [InlineData(float.NaN, 2f, null, 1f)]
    [InlineData(2f, 3f, 0.5f, 0f)]
    public void A_log_sum_exp_to_base_2_is_the_natural_one_over_ln_2_rounded_once(float max, float sum, float? sink, float queries)
    {
        (float[] output, float lse) = Finish(max, sum, 1.5f, sink, queryLengths: [(int)queries], lseBase: LogarithmBase.Two);
        (float[] naturalOutput, _) = Finish(max, sum, 1.5f, sink, queryLengths: [(int)queries]);

        double logit = sink ?? Minus;
        double top = Math.Max(max, logit);
        double keys = sum == 0 ? 0 : sum * Math.Exp(max - top);
        double natural = queries == 0 || double.IsNegativeInfinity(top) ? Minus : top + Math.Log(keys + Math.Exp(logit - top));
        Assert.Equal((float)(natural / Math.Log(2)), lse);
        Assert.Equal(naturalOutput, output);
    }

    [Fact]
    public void A_log_sum_exp_to_base_2_that_fp32_cannot_hold_is_the_largest_float()
    {
        (_, float lse) = Finish((float)ScoreRange.Settle(3e38), 1, 1.5f, Minus, lseBase: LogarithmBase.Two);

        Assert.Equal(float.MaxValue, lse);
    }

    [Fact]
    public void A_query_past_its_length_is_zero_with_minus_infinity_in_spite_of_sinks()
    {
        (float[] output, float lse) = Finish(3, 2, 1.5f, 4, queryLengths: [0]);

        Assert.Equal([0f], output);
        Assert.Equal(Minus, lse);
    }

    [Theory]
    [InlineData(float.NaN, 2f, 1f, null)]
    [InlineData(float.NaN, 2f, 1f, 0.5f)]
    [InlineData(1f, float.NaN, 1f, 1e30f)]
    [InlineData(1f, float.NaN, 1f, null)]
    [InlineData(float.NaN, 0f, float.NaN, null)]
    [InlineData(1f, 2f, 1f, float.NaN)]
    public void A_NaN_in_the_scores_is_never_hidden(float max, float sum, float element, float? sink)
    {
        (float[] output, float lse) = Finish(max, sum, element, sink);

        Assert.True(float.IsNaN(lse));
        Assert.True(sink is null || float.IsNaN(output[0]));
    }

    [Fact]
    public void A_NaN_value_is_not_hidden_by_a_sink_that_takes_all_weight()
    {
        (float[] output, float lse) = Finish(1, 2, float.NaN, 1e30f);

        Assert.True(float.IsNaN(output[0]));
        Assert.Equal(1e30f, lse);
    }

    [Fact]
    public void Lse_without_sinks_counts_the_keys_alone()
    {
        var problem = new AttentionProblem(
            new AttentionShape(2, 1, 4, 1, 1, 1, 1), new AttentionOptions { Sinks = [9], QueryLengths = [1, 0] });
        using var states = new RandomStates(2, 1, 1);
        PartialAttention state = states.Full();
        float[] lse = new float[2];

        AttentionEdge.LogSumExpWithoutSinks(problem, [0], state, lse);

        Assert.Equal([(float)(state.Max[0] + Math.Log(state.Sum[0])), Minus], lse);
    }

    [Fact]
    public void An_output_of_another_size_is_refused()
    {
        var problem = new AttentionProblem(new AttentionShape(1, 2, 4, 1, 1, 1, 3), new AttentionOptions());
        using var states = new RandomStates(2, 3, 1);
        PartialAttention state = states.Full();

        Assert.Throws<ShapeMismatchException>(() => AttentionEdge.Finish(problem, [0, 1], state, new float[5], new float[2]));
        Assert.Throws<ShapeMismatchException>(() => AttentionEdge.Finish(problem, [0], state, new float[6], new float[1]));
    }

    private static (float[] Output, float LogSumExp) Finish(
        float max, float sum, float element, float? sink, int[]? queryLengths = null, LogarithmBase lseBase = LogarithmBase.Natural)
    {
        var problem = new AttentionProblem(
            new AttentionShape(1, 1, 4, 1, 1, 1, 1),
            new AttentionOptions { Sinks = sink is { } logit ? [logit] : null, QueryLengths = queryLengths, LseBase = lseBase });
        using var states = new RandomStates(1, 1, 1);
        PartialAttention state = states.Empty();
        (state.Output[0], state.Max[0], state.Sum[0]) = (element, max, sum);
        float[] output = [float.MaxValue];
        float[] lse = [float.MaxValue];

        AttentionEdge.Finish(problem, [0], state, output, lse);

        return (output, lse[0]);
    }
}
