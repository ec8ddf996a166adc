using System;
using System.Linq;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Tensors;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

public sealed class ReferenceAttentionTests
{
    public static TheoryData<string> Names => [.. GoldenCase.All().Select(golden => golden.Name)];

    [Theory, MemberData(nameof(Names))]
    public void Every_row_is_what_the_NumPy_reference_gives(string name)
    {
        using GoldenCase golden = GoldenCase.All().Single(candidate => candidate.Name == name);
        var call = new ReferenceCall(golden.Shape, golden.Options, golden.Query(), golden.Key(), golden.Value());
        (double[] outputs, double[] logSumExps) = (golden.Output, golden.LogSumExp);
        double[] output = new double[golden.Shape.ValueDim];
        for (int row = 0; row < logSumExps.Length; row++)
        {
            int i = row % golden.Shape.QueryLength;
            int head = row / golden.Shape.QueryLength % golden.Shape.QueryHeads;
            int batch = row / golden.Shape.QueryLength / golden.Shape.QueryHeads;

            ReferenceAttention.Row(call, batch, head, i, output, out double lse);

            int place = (((batch * golden.Shape.QueryLength) + i) * golden.Shape.QueryHeads) + head;
            Assert.Equal(logSumExps[row], lse, 1e-12 * Math.Max(1, Math.Abs(lse)));
            Assert.All(output.Index(), element =>
                Assert.Equal(outputs[(place * output.Length) + element.Index], element.Item, 1e-12));
        }
    }

    [Fact]
    public void Golden_data_has_hidden_keys_empty_rows_and_plain_rows()
    {
        double[] all = [.. GoldenCase.All().SelectMany(golden => golden.LogSumExp)];

        Assert.InRange(GoldenCase.All().Count(), 50, 70);
        Assert.InRange(all.Count(double.IsNegativeInfinity), 20, all.Length / 4);
    }

    [Theory, InlineData(1e3), InlineData(6e4), InlineData(1e6), InlineData(-1e6)]
    public void Equal_scores_give_the_mean_of_the_values(double score)
    {
        const int keys = 37;
        using var query = new HostTensor("query", ElementType.Float32, [1, 1, 1, 1], [score]);
        using var key = new HostTensor("key", ElementType.Float32, [1, keys, 1, 1], [.. Enumerable.Repeat(1.0, keys)]);
        using var value = new HostTensor("value", ElementType.Float32, [1, keys, 1, 1], [.. Enumerable.Range(0, keys).Select(j => (double)j)]);
        var call = new ReferenceCall(
            new AttentionShape(1, 1, keys, 1, 1, 1, 1), new AttentionOptions { Scale = 1 }, query.View, key.View, value.View);
        double[] output = new double[1];

        ReferenceAttention.Row(call, 0, 0, 0, output, out double lse);

        Assert.Equal((keys - 1) / 2.0, output[0], 1e-12);
        Assert.Equal(score + Math.Log(keys), lse, 1e-9);
    }

    [Fact]
    public void Only_rows_that_see_a_NaN_are_NaN()
    {
        using var query = HostTensor.Normal("query", ElementType.Float32, [1, 4, 1, 3], 1);
        using var key = HostTensor.Normal("key", ElementType.Float32, [1, 4, 1, 3], 2);
        using var value = HostTensor.Normal("value", ElementType.Float32, [1, 4, 1, 2], 3);
        var call = new ReferenceCall(
            new AttentionShape(1, 4, 4, 1, 1, 3, 2), new AttentionOptions { Causal = true }, query.View, key.View, value.View);
        key.Write((2 * 3) + 1, double.NaN);
        double[] output = new double[2];

        bool[] isNaN = [.. Enumerable.Range(0, 4).Select(i =>
        {
            ReferenceAttention.Row(call, 0, 0, i, output, out double lse);
            Assert.Equal(double.IsNaN(lse), output.All(double.IsNaN));
            return double.IsNaN(lse);
        })];

        Assert.Equal([false, false, true, true], isNaN);
    }

    [Fact]
    public void Tensor_order_and_element_type_change_nothing()
    {
        var shape = new AttentionShape(2, 3, 11, 4, 2, 5, 7);
        var options = new AttentionOptions { Causal = true };
        double[] expected = new double[7];
        double[] actual = new double[7];
        foreach (ElementType type in new[] { ElementType.Float64, ElementType.Float32, ElementType.Float16, ElementType.BFloat16 })
        {
            using var query = HostTensor.Normal("query", ElementType.BFloat16, [2, 3, 4, 5], 1);
            using var key = HostTensor.Normal("key", ElementType.BFloat16, [2, 11, 2, 5], 2);
            using var value = HostTensor.Normal("value", ElementType.BFloat16, [2, 11, 2, 7], 3);
            using var sameKey = new HostTensor("key", type, key.View.Shape, key.Values, 3, 2, 1, 0);
            using var sameValue = new HostTensor("value", type, value.View.Shape, value.Values, 0, 2, 1, 3);

            var call = new ReferenceCall(shape, options, query.View, key.View, value.View);

            ReferenceAttention.Row(call, 1, 3, 1, expected, out double expectedLse);
            ReferenceAttention.Row(call with { Key = sameKey.View, Value = sameValue.View }, 1, 3, 1, actual, out double actualLse);

            // Subnormal halves are the only bfloat16 numbers near these that float16 cannot hold.
            double tolerance = type == ElementType.Float16 ? 1e-5 : 0;
            Assert.Equal(expectedLse, actualLse, tolerance);
            Assert.All(expected.Index(), element => Assert.Equal(element.Item, actual[element.Index], tolerance));
        }
    }
}
