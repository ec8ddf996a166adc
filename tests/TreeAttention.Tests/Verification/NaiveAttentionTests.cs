using System;
using System.Linq;
using TreeAttention.Testing.Cases;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

public sealed class NaiveAttentionTests
{
    [Fact]
    public void Plain_single_precision_is_near_the_reference_and_16_bits_are_further_off_under_every_option()
    {
        foreach (int[] options in CoveringArray.Pairs([.. OptionLevels.Counts], OptionLevels.GoTogether))
        {
            ProblemRecipe recipe = RandomProblem.RecipeOf(7) with { Options = options, Shape = new AttentionShape(1, 2, 33, 4, 2, 16, 9) };
            RandomProblem.Holds(recipe, problem =>
            {
                double single = Error(problem, ElementType.Float32);
                double half = Error(problem, ElementType.Float16);
                double brain = Error(problem, ElementType.BFloat16);

                Assert.InRange(single, 0, 1e-5);
                Assert.InRange(half, single, 2e-2);
                Assert.InRange(brain, half, 2e-1);
            });
        }
    }

    private static double Error(RandomProblem problem, ElementType storage)
    {
        double[] expected = new double[problem.Problem.Shape.ValueDim];
        float[] actual = new float[expected.Length];
        double largest = 0;
        foreach (AttentionRow row in Agreement.SampleRows(problem.Problem.Shape, 1))
        {
            ReferenceAttention.Row(problem.Call, row.Batch, row.Head, row.Query, expected, out double lse);
            NaiveAttention.Row(problem.Call with { Storage = storage }, row, actual, out float naive);
            Assert.Equal(double.IsNegativeInfinity(lse), float.IsNegativeInfinity(naive));
            largest = Math.Max(largest, expected.Zip(actual, (x, y) => Math.Abs(x - y)).Max());
        }

        return largest;
    }
}
