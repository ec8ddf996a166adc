using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

public sealed class AttentionMaskTests
{
    public static TheoryData<int> Rows => [.. Enumerable.Range(0, CoveringArray.Pairs([.. OptionLevels.Counts]).Count)];

    [Theory, MemberData(nameof(Rows))]
    public void The_interval_and_the_rules_inside_it_are_the_rule_of_each_option(int row)
    {
        int[] options = CoveringArray.Pairs([.. OptionLevels.Counts])[row];
        for (int seed = 0; seed < 20; seed++)
        {
            ProblemRecipe recipe = RandomProblem.RecipeOf((1000 * row) + seed, 30) with { Options = options };
            RandomProblem.Holds(recipe, problem =>
            {
                foreach ((int batch, int i, int j) in Places(problem.Problem.Shape))
                {
                    bool expected = Keeps(problem.Problem, batch, i, j);

                    Assert.True(expected == problem.Problem.Mask.Keeps(batch, i, j), $"batch {batch}, query {i}, key {j}");
                }
            });
        }
    }

    [Fact]
    public void Random_problems_hide_some_keys_and_keep_some()
    {
        int kept = 0;
        int all = 0;
        for (int seed = 0; seed < 50; seed++)
        {
            using var problem = RandomProblem.Create(seed, 30);
            AttentionMask mask = problem.Problem.Mask;
            bool[] keeps = [.. Places(problem.Problem.Shape).Select(place => mask.Keeps(place.Batch, place.I, place.J))];
            kept += keeps.Count(keep => keep);
            all += keeps.Length;
        }

        Assert.InRange(kept, all / 10, all * 9 / 10);
    }

    [Fact]
    public void A_window_of_any_size_does_not_overflow()
    {
        var shape = new AttentionShape(1, 2, 5, 1, 1, 1, 1);
        var options = new AttentionOptions { WindowLeft = int.MaxValue, WindowRight = int.MaxValue };

        KeyInterval visible = new AttentionProblem(shape, options).Mask.Visible(0, 1);

        Assert.Equal(new KeyInterval(0, 5), visible);
    }

    [Fact]
    public void Depth_first_blocks_are_skipped_whole_and_nothing_that_is_seen_is_skipped()
    {
        // Three responses to one prompt: the last sees the prompt and itself.
        int[] lengths = [300, 500, 400, 200];
        int[] start = [.. lengths.SelectMany((length, node) => Enumerable.Repeat(node, length))];
        int[] end = [.. lengths.SelectMany((length, node) => Enumerable.Repeat(node == 0 ? 3 : node, length))];
        AttentionMask mask = new AttentionProblem(
            new AttentionShape(1, 1400, 1400, 1, 1, 1, 1), new AttentionOptions { DfsStart = start, DfsEnd = end }).Mask;

        KeyInterval inFirstResponse = mask.WithoutHiddenBlocks(0, 1399, new KeyInterval(384, 768));
        KeyInterval acrossTheEdge = mask.WithoutHiddenBlocks(0, 1399, new KeyInterval(1024, 1400));

        Assert.True(inFirstResponse.IsEmpty);
        Assert.Equal(new KeyInterval(1152, 1400), acrossTheEdge);
        for (int i = 0; i < 1400; i += 7)
        {
            for (int page = 0; page < 1400; page += 100)
            {
                KeyInterval kept = mask.WithoutHiddenBlocks(0, i, new KeyInterval(page, page + 100));
                Assert.All(
                    Enumerable.Range(page, 100).Where(j => mask.Keeps(0, i, j)), j => Assert.True(kept.First <= j && j < kept.End, $"{i} {j}"));
            }
        }
    }

    // Each option's own sentence, with no interval and no shared arithmetic.
    private static bool Keeps(AttentionProblem problem, int batch, int i, int j)
    {
        AttentionOptions options = problem.Options;
        int keys = options.KeyLengths?[batch] ?? problem.Shape.KeyLength;
        int queries = options.QueryLengths?[batch] ?? problem.Shape.QueryLength;
        int position = i + keys - queries;
        bool keeps = i < queries && j < keys;
        keeps &= !options.Causal || j <= position;
        keeps &= options.WindowLeft < 0 || j >= position - options.WindowLeft;
        keeps &= options.WindowRight < 0 || j <= position + options.WindowRight;
        if (options is { DfsStart: { } start, DfsEnd: { } end })
        {
            keeps &= j <= position && start[(batch * problem.Shape.QueryLength) + i] <= end[(batch * problem.Shape.KeyLength) + j];
        }

        int column = options.TailMaskLength - (keys - j);
        if (options.TailMask is { } mask && column >= 0 && j < keys)
        {
            keeps &= mask[(((batch * problem.Shape.QueryLength) + i) * options.TailMaskLength) + column];
        }

        return keeps;
    }

    private static IEnumerable<(int Batch, int I, int J)> Places(AttentionShape shape) =>
        from batch in Enumerable.Range(0, shape.Batch)
        from i in Enumerable.Range(0, shape.QueryLength)
        from j in Enumerable.Range(0, shape.KeyLength)
        select (batch, i, j);
}
