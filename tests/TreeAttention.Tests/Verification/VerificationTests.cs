using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

public sealed class VerificationTests
{
    private const int Batch = 2;
    private const int Queries = 3;
    private const int Heads = 4;
    private const int Dim = 5;

    public static TheoryData<ElementType> Types => [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3];

    [Theory, MemberData(nameof(Types))]
    public void The_reference_itself_is_right(ElementType type)
    {
        using RandomProblem problem = Problem(type);

        VerificationReport report = Check(problem, type, _ => { }, _ => { });

        Assert.Equal(0, report.Wrong);
        Assert.Equal(Batch * Queries * Heads, report.Rows);
        Assert.InRange(report.ErrorMax, 0, report.ErrorBound);
    }

    [Theory, MemberData(nameof(Types))]
    public void Zeros_are_wrong_in_every_row(ElementType type)
    {
        using RandomProblem problem = Problem(type);

        VerificationReport report = Check(problem, type, output => output.AsSpan().Clear(), _ => { });

        Assert.Equal(report.Rows, report.Wrong);
        Assert.True(report.ErrorMax > report.ErrorBound);
    }

    [Theory, MemberData(nameof(Types))]
    public void A_dropped_shard_is_wrong(ElementType type)
    {
        using RandomProblem problem = Problem(type);
        AttentionOptions shorter = problem.Problem.Options with { KeyLengths = [30, 30] };

        VerificationReport report = CheckAnother(problem, type, shorter);

        AssertNearlyAll(type, report.Rows, report.Wrong);
    }

    [Theory, MemberData(nameof(Types))]
    public void A_wrong_scale_is_wrong(ElementType type)
    {
        using RandomProblem problem = Problem(type);

        VerificationReport report = CheckAnother(problem, type, problem.Problem.Options with { Scale = 1 });

        Assert.Equal(report.Rows, report.Wrong);
    }

    [Theory, MemberData(nameof(Types))]
    public void A_causal_mask_off_by_one_is_wrong(ElementType type)
    {
        using RandomProblem problem = Problem(type, causal: true);

        VerificationReport report = CheckAnother(problem, type, problem.Problem.Options with { Causal = false, WindowRight = 1 });

        // The last query of each head sees all keys either way.
        AssertNearlyAll(type, report.Rows - (Batch * Heads), report.Wrong);
    }

    [Theory, MemberData(nameof(Types))]
    public void Swapped_heads_are_wrong(ElementType type)
    {
        using RandomProblem problem = Problem(type);

        VerificationReport report = Check(problem, type, SwapFirstHeads, _ => { });

        Assert.Equal(2, report.Wrong);
        Assert.Contains("batch 0, query 0, head ", report.WorstRow, StringComparison.Ordinal);
    }

    [Theory, MemberData(nameof(Types))]
    public void A_log_sum_exp_to_base_2_is_wrong(ElementType type)
    {
        using RandomProblem problem = Problem(type);

        VerificationReport report = Check(problem, type, _ => { }, lse => Change(lse, x => x / MathF.Log(2)));

        Assert.Equal(report.Rows, report.Wrong);
        Assert.Contains("lse is ", report.WorstRow, StringComparison.Ordinal);
    }

    [Fact]
    public void A_log_sum_exp_rounded_to_half_is_wrong_in_single_precision()
    {
        using RandomProblem problem = Problem(ElementType.Float32);

        VerificationReport report = Check(problem, ElementType.Float32, _ => { }, lse => Change(lse, x => (float)(Half)x));

        Assert.InRange(report.Wrong, report.Rows * 3 / 4, report.Rows);
    }

    [Fact]
    public void An_output_rounded_to_half_is_wrong_in_single_precision()
    {
        using RandomProblem problem = Problem(ElementType.Float32);

        VerificationReport report = Check(problem, ElementType.Float32, output => Change(output, x => (float)(Half)x), _ => { });

        Assert.Equal(report.Rows, report.Wrong);
    }

    [Theory, InlineData(float.NaN), InlineData(float.PositiveInfinity), InlineData(float.NegativeInfinity)]
    public void One_number_that_is_not_finite_is_one_wrong_row_with_infinite_error(float number)
    {
        using RandomProblem problem = Problem(ElementType.Float32);

        VerificationReport report = Check(problem, ElementType.Float32, output => output[(17 * Dim) + 2] = number, _ => { });

        Assert.Equal(1, report.Wrong);
        Assert.Equal(double.PositiveInfinity, report.ErrorMax);
        Assert.StartsWith("batch 1, query 1, head 1: output[dim 2] is ", report.WorstRow, StringComparison.Ordinal);
    }

    [Fact]
    public void A_NaN_of_the_reference_is_matched_by_NaN_alone()
    {
        using RandomProblem problem = Problem(ElementType.Float32);
        using var poisoned = new HostTensor(
            "value", ElementType.Float32, problem.Value.Shape, [.. Enumerable.Repeat(1.0, (int)problem.Value.Count)]);
        poisoned.Write(0, double.NaN);

        VerificationReport right = Check(problem, ElementType.Float32, _ => { }, _ => { }, poisoned.View);
        VerificationReport hidden = Check(problem, ElementType.Float32, output => Change(output, x => float.IsNaN(x) ? 1 : x), _ => { }, poisoned.View);

        Assert.Equal(0, right.Wrong);
        Assert.Equal(Queries * problem.Problem.Shape.GroupSize, hidden.Wrong);
    }

    [Theory, InlineData(1e30), InlineData(-1e30)]
    public void A_log_sum_exp_beyond_fp32_is_the_largest_float_of_its_sign(double scale)
    {
        var shape = new AttentionShape(1, 1, 1, 1, 1, 1, 1);
        var problem = new AttentionProblem(shape, new AttentionOptions { Scale = scale });
        using var large = new HostTensor("key", ElementType.Float32, [1, 1, 1, 1], [1e5]);
        float saturated = float.MaxValue * Math.Sign(scale);

        VerificationReport right = Agreement.Check(
            new ReferenceCall(problem.Shape, problem.Options, large.View, large.View, large.View), [1e5f], [saturated], 1);
        VerificationReport smaller = Agreement.Check(
            new ReferenceCall(problem.Shape, problem.Options, large.View, large.View, large.View), [1e5f], [saturated / 2], 1);

        Assert.Equal(0, right.Wrong);
        Assert.Equal(1, smaller.Wrong);
    }

    [Fact]
    public void Values_below_the_normal_floats_may_be_a_few_steps_off_but_not_gone()
    {
        var shape = new AttentionShape(1, 1, 1, 1, 1, 1, 1);
        var problem = new AttentionProblem(shape, new AttentionOptions());
        using var one = new HostTensor("key", ElementType.Float32, [1, 1, 1, 1], [1]);
        using var tiny = new HostTensor("value", ElementType.Float32, [1, 1, 1, 1], [1e-42]);

        VerificationReport near = Agreement.Check(
            new ReferenceCall(problem.Shape, problem.Options, one.View, one.View, tiny.View, ElementType.Float32),
            [1e-42f + (3 * float.Epsilon)], [1], 1);
        VerificationReport gone = Agreement.Check(
            new ReferenceCall(problem.Shape, problem.Options, one.View, one.View, tiny.View), [0], [1], 1);
        VerificationReport far = Agreement.Check(
            new ReferenceCall(problem.Shape, problem.Options, one.View, one.View, tiny.View), [1.2e-42f], [1], 1);

        Assert.Equal(0, near.Wrong);
        Assert.Equal(1, gone.Wrong);
        Assert.Equal(1, far.Wrong);
    }

    [Fact]
    public void Minus_infinity_is_matched_by_itself_alone()
    {
        using RandomProblem problem = Problem(ElementType.Float32, keys: 0);

        VerificationReport right = Check(problem, ElementType.Float32, _ => { }, _ => { });
        VerificationReport low = Check(problem, ElementType.Float32, _ => { }, lse => Change(lse, _ => float.MinValue));
        VerificationReport notZero = Check(problem, ElementType.Float32, output => Change(output, _ => 1e-30f), _ => { });

        Assert.Equal(0, right.Wrong);
        Assert.Equal(low.Rows, low.Wrong);
        Assert.Equal(notZero.Rows, notZero.Wrong);
    }

    [Theory, InlineData(ElementType.Float16), InlineData(ElementType.BFloat16), InlineData(ElementType.Float8E4M3)]
    public void Keys_rounded_for_storage_are_within_the_rule(ElementType storage)
    {
        for (int seed = 0; seed < 200; seed++)
        {
            using var problem = RandomProblem.Create(seed);
            using var key = new HostTensor("key", storage, problem.Key.Shape, ValuesOf(problem.Key));
            using var value = new HostTensor("value", storage, problem.Value.Shape, ValuesOf(problem.Value));
            (float[] output, float[] lse) = Reference(problem.Problem, problem.Query, key.View, value.View);

            VerificationReport report = Agreement.Check(
                problem.Call with { Storage = storage }, output, lse, 1);

            Assert.True(report.Wrong == 0, $"{problem.Recipe}: {report}");
        }
    }

    [Theory, InlineData(ElementType.Float16), InlineData(ElementType.BFloat16), InlineData(ElementType.Float8E4M3)]
    public void One_row_of_few_keys_is_within_the_rule_whether_its_query_is_rounded_or_not(ElementType storage)
    {
        for (int seed = 0; seed < 200; seed++)
        {
            using var problem = RandomProblem.Create(new ProblemRecipe(
                seed, new AttentionShape(1, 1, 1 + (seed % 3), 1, 1, 32, 8), new int[OptionLevels.Counts.Count], ElementType.Float32));
            using var key = new HostTensor("key", storage, problem.Key.Shape, ValuesOf(problem.Key));
            using var value = new HostTensor("value", storage, problem.Value.Shape, ValuesOf(problem.Value));
            ElementType arithmetic = storage == ElementType.Float8E4M3 ? ElementType.Float16 : storage;
            using var query = new HostTensor("query", arithmetic, problem.Query.Shape, ValuesOf(problem.Query));
            foreach (TensorView used in (TensorView[])[problem.Query, query.View])
            {
                (float[] output, float[] lse) = Reference(problem.Problem, used, key.View, value.View);

                VerificationReport report = Agreement.Check(problem.Call with { Storage = storage }, output, lse, 1);

                Assert.True(report.Wrong == 0, $"{used.Type} query, {problem.Recipe}: {report}");
            }
        }
    }

    [Fact]
    public void Scales_of_f8e4m3_must_be_those_that_keys_and_values_were_stored_with()
    {
        using RandomProblem problem = Problem(ElementType.Float32);
        KeyValueScales scales = new([0.5f, 0.25f], [1f, 0.3f]);
        KeyValueScales swapped = new([0.25f, 0.5f], [0.3f, 1f]);
        using HostTensor key = Quantised("key", problem.Key, scales.Key);
        using HostTensor value = Quantised("value", problem.Value, scales.Value);
        (float[] output, float[] lse) = Reference(
            problem.Problem, problem.Query, key.View.WithHeadScales(scales.Key), value.View.WithHeadScales(scales.Value));
        (float[] otherOutput, float[] otherLse) = Reference(
            problem.Problem, problem.Query, key.View.WithHeadScales(swapped.Key), value.View.WithHeadScales(swapped.Value));

        VerificationReport right = Check(problem, scales, output, lse);
        VerificationReport wrong = Check(problem, scales, otherOutput, otherLse);

        Assert.Equal(0, right.Wrong);
        Assert.Equal(wrong.Rows, wrong.Wrong);
    }

    [Fact]
    public void Tensors_of_f8e4m3_are_held_against_by_the_rule_of_half()
    {
        using RandomProblem problem = Problem(ElementType.Float32);
        KeyValueScales scales = new([0.5f, 0.25f], [1f, 0.3f]);
        using HostTensor key = Quantised("key", problem.Key, scales.Key);
        using HostTensor value = Quantised("value", problem.Value, scales.Value);
        (TensorView keys, TensorView values) = (key.View.WithHeadScales(scales.Key), value.View.WithHeadScales(scales.Value));
        (float[] output, float[] lse) = Reference(problem.Problem, problem.Query, keys, values);
        (float[] rough, float[] roughLse) = Reference(problem.Problem, problem.Query, problem.Key, problem.Value);

        VerificationReport right = Agreement.Check(
            problem.Call with { Key = keys, Value = values, Storage = ElementType.Float8E4M3, Scales = scales },
            output, lse, 1);
        VerificationReport wrong = Agreement.Check(
            problem.Call with { Key = keys, Value = values, Storage = ElementType.Float8E4M3, Scales = scales },
            rough, roughLse, 1);

        Assert.Equal(0, right.Wrong);
        Assert.Equal(wrong.Rows, wrong.Wrong); // what is not rounded is not what was stored
    }

    [Fact]
    public void Rows_of_a_large_call_are_sampled_with_first_and_last_queries_and_the_same_for_the_same_seed()
    {
        var problem = new AttentionProblem(new AttentionShape(2, 4096, 8192, 8, 2, 64, 64), new AttentionOptions());

        IReadOnlyList<AttentionRow> rows = Agreement.SampleRows(problem.Shape, 7);

        Assert.Equal(Agreement.SampledRows, rows.Distinct().Count());
        Assert.Equal(rows, Agreement.SampleRows(problem.Shape, 7));
        Assert.NotEqual(rows, Agreement.SampleRows(problem.Shape, 8));
        Assert.InRange(rows.Count(row => row.Query == 0), 2, 20);
        Assert.InRange(rows.Count(row => row.Query == 4095), 2, 20);
        Assert.True(rows.Select(row => row.Batch).Distinct().Count() == 2 && rows.Select(row => row.Head).Distinct().Count() > 5);
    }

    // In 16 bits a key can weigh so little that a row without it is still right.
    private static void AssertNearlyAll(ElementType type, long expected, long wrong) =>
        Assert.InRange(wrong, type == ElementType.Float32 ? expected : expected * 3 / 4, expected);

    private static RandomProblem Problem(ElementType type, bool causal = false, int keys = 37)
    {
        int[] options = new int[OptionLevels.Counts.Count];
        options[1] = causal ? 1 : 0;
        var shape = new AttentionShape(Batch, Queries, keys, Heads, 2, 16, Dim);
        return RandomProblem.Create(new ProblemRecipe(20261121, shape, options, type));
    }

    private static VerificationReport Check(
        RandomProblem problem, ElementType type, Action<float[]> spoilOutput, Action<float[]> spoilLse, TensorView? value = null)
    {
        (float[] output, float[] lse) = Reference(problem.Problem, problem.Query, problem.Key, value ?? problem.Value);
        spoilOutput(output);
        spoilLse(lse);
        return Agreement.Check(problem.Call with { Value = value ?? problem.Value, Storage = type }, output, lse, 1);
    }

    // The result of a call with other options, held against the call as it is.
    private static VerificationReport CheckAnother(RandomProblem problem, ElementType type, AttentionOptions options)
    {
        (float[] output, float[] lse) = Reference(
            new AttentionProblem(problem.Problem.Shape, options), problem.Query, problem.Key, problem.Value);
        return Agreement.Check(
            problem.Call with { Storage = type }, output, lse, 1);
    }

    private static (float[] Output, float[] LogSumExp) Reference(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value)
    {
        AttentionShape shape = problem.Shape;
        float[] output = new float[shape.Batch * shape.QueryLength * shape.QueryHeads * shape.ValueDim];
        float[] lse = new float[shape.Batch * shape.QueryHeads * shape.QueryLength];
        double[] row = new double[shape.ValueDim];
        for (int i = 0; i < lse.Length; i++)
        {
            int index = i % shape.QueryLength;
            int head = i / shape.QueryLength % shape.QueryHeads;
            int batch = i / shape.QueryLength / shape.QueryHeads;
            ReferenceAttention.Row(
                new ReferenceCall(problem.Shape, problem.Options, query, key, value), batch, head, index, row, out double logSumExp);
            lse[i] = (float)logSumExp;
            int place = (((batch * shape.QueryLength) + index) * shape.QueryHeads) + head;
            row.Select(x => (float)x).ToArray().CopyTo(output, place * shape.ValueDim);
        }

        return (output, lse);
    }

    private static double[] ValuesOf(TensorView view)
    {
        double[] values = new double[view.Count];
        var region = new Region(view.Address, view.Count * view.Type.SizeInBytes(), view.Type, MemoryPlace.Host);
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = ElementConversion.ToDouble(region.Slice(i, 1).AsSpan<byte>(), view.Type);
        }

        return values;
    }

    private static VerificationReport Check(RandomProblem problem, KeyValueScales? scales, float[] output, float[] lse) => Agreement.Check(problem.Call with { Storage = ElementType.Float8E4M3, Scales = scales }, output, lse, 1);

    private static HostTensor Quantised(string name, TensorView view, float[] scales)
    {
        double[] values = ValuesOf(view);
        int dim = (int)view.Shape[3];
        for (int i = 0; i < values.Length; i++)
        {
            values[i] /= scales[i / dim % scales.Length];
        }

        return new HostTensor(name, ElementType.Float8E4M3, view.Shape, values);
    }

    private static void SwapFirstHeads(float[] output)
    {
        float[] first = output[..Dim];
        output.AsSpan(Dim, Dim).CopyTo(output);
        first.CopyTo(output, Dim);
    }

    private static void Change(float[] numbers, Func<float, float> change)
    {
        for (int i = 0; i < numbers.Length; i++)
        {
            numbers[i] = change(numbers[i]);
        }
    }
}
