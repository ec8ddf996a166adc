using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

public sealed class AttentionMaskTests
{
    private static readonly IReadOnlyList<int[]> _rows = CoveringArray.Pairs([.. OptionLevels.Counts], OptionLevels.GoTogether);

    public static TheoryData<int> Rows => [.. Enumerable.Range(0, _rows.Count)];

    [Theory, MemberData(nameof(Rows))]
    public void The_interval_the_rules_inside_it_and_the_bias_are_the_sentence_of_each_option(int row)
    {
        for (int seed = 0; seed < 20; seed++)
        {
            ProblemRecipe recipe = RandomProblem.RecipeOf((1000 * row) + seed, 30) with { Options = _rows[row] };
            RandomProblem.Holds(recipe, problem =>
            {
                (AttentionShape shape, AttentionMask mask) = (problem.Problem.Shape, problem.Problem.Mask);
                foreach ((int batch, int i, int j) in Places(shape))
                {
                    var rules = new ReferenceRules(shape, problem.Problem.Options, batch, i);
                    bool sees = rules.Sees(j);

                    Assert.True(sees == mask.Keeps(batch, i, j), $"batch {batch}, query {i}, key {j}");
                    Assert.True(!sees || rules.Bias(shape.QueryHeads - 1, j) == mask.Bias(batch, shape.QueryHeads - 1, i, j), $"batch {batch}, query {i}, key {j}");
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
    public void Windows_and_chunks_of_any_size_do_not_overflow()
    {
        var shape = new AttentionShape(1, 2, 5, 1, 1, 1, 1);
        var options = new AttentionOptions { WindowLeft = int.MaxValue, WindowRight = int.MaxValue, LocalChunk = int.MaxValue };

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

    private static IEnumerable<(int Batch, int I, int J)> Places(AttentionShape shape) =>
        from batch in Enumerable.Range(0, shape.Batch)
        from i in Enumerable.Range(0, shape.QueryLength)
        from j in Enumerable.Range(0, shape.KeyLength)
        select (batch, i, j);
}
