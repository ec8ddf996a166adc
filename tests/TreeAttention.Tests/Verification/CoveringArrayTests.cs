using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Cases;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

public sealed class CoveringArrayTests
{
    private static readonly int[][] _levels = [[2, 2], [3, 3, 3], [4, 1, 2], [8, 5, 6, 7], [.. OptionLevels.Counts]];

    [Fact]
    public void Every_two_levels_of_every_two_factors_meet_in_few_rows()
    {
        foreach (int[] levels in _levels)
        {
            IReadOnlyList<int[]> rows = CoveringArray.Pairs(levels);

            int least = levels.OrderDescending().Take(2).Aggregate((a, b) => a * b);
            Assert.InRange(rows.Count, least, 2 * least);
            for (int first = 0; first < levels.Length; first++)
            {
                for (int second = 0; second < first; second++)
                {
                    int met = rows.Select(row => (row[first], row[second])).Distinct().Count();
                    Assert.Equal(levels[first] * levels[second], met);
                }
            }
        }
    }

    [Fact]
    public void Levels_that_do_not_go_together_never_meet_and_all_others_do()
    {
        // Level 2 of the first factor asks for level 0 of the second; level 1 of the third forbids level 3 of the second.
        static bool GoTogether(int[] row) => (row[0] != 2 || row[1] is CoveringArray.Open or 0) && (row[2] != 1 || row[1] != 3);

        IReadOnlyList<int[]> rows = CoveringArray.Pairs([3, 4, 2, 2], GoTogether);

        Assert.All(rows, row => Assert.True(GoTogether(row) && row.All(level => level >= 0)));
        Assert.Equal((2 * 4) + 1, rows.Select(row => (row[0], row[1])).Distinct().Count());
        Assert.Equal(3 * 2, rows.Select(row => (row[0], row[2])).Distinct().Count());
        Assert.Equal((4 * 2) - 1, rows.Select(row => (row[1], row[2])).Distinct().Count());
        Assert.Equal(4 * 2, rows.Select(row => (row[1], row[3])).Distinct().Count());
    }

    [Fact]
    public void A_failing_property_is_shrunk_to_what_makes_it_fail()
    {
        ProblemRecipe recipe = RandomProblem.RecipeOf(5) with { Options = [1, 1, 3, 1, 2, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0] };
        recipe = recipe with { Shape = recipe.Shape with { KeyLength = 40 } };

        Exception error = Assert.Throws<InvalidOperationException>(() => RandomProblem.Holds(
            recipe, problem => Assert.False(problem.Problem.Options.Causal && problem.Problem.Shape.KeyLength >= 7)));

        string shrunk = error.Message.Split("shrunk from")[0];
        Assert.Contains("seed 5", shrunk, StringComparison.Ordinal);
        Assert.Contains("Batch = 1, QueryLength = 1, KeyLength = 7, QueryHeads = 1, KvHeads = 1, HeadDim = 1, ValueDim = 1", shrunk, StringComparison.Ordinal);
        Assert.Contains("options [causal=1]", shrunk, StringComparison.Ordinal);
    }

    [Fact]
    public void The_same_seed_gives_the_same_problem()
    {
        using var first = RandomProblem.Create(3);
        using var second = RandomProblem.Create(3);

        Assert.Equal(first.Recipe.ToString(), second.Recipe.ToString());
        Assert.Equal(Bytes(first.Key), Bytes(second.Key));
    }

    private static byte[] Bytes(TensorView view) =>
        new Region(view.Address, view.Count * view.Type.SizeInBytes(), view.Type, MemoryPlace.Host).AsSpan<byte>().ToArray();
}
