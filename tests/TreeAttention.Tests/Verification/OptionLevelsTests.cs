using System;
using System.Collections.Generic;
using System.Linq;
using System.Reflection;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Verification;
using Xunit;

namespace TreeAttention.Tests.Verification;

public sealed class OptionLevelsTests
{
    private static readonly AttentionShape _shape = new(1, 5, 23, 4, 2, 8, 8);

    // Each property, and what it is when it is not used.
    private static readonly Dictionary<string, object?> _unused = Properties(new AttentionOptions());

    [Fact]
    public void Every_property_of_the_options_is_used_by_some_level()
    {
        IEnumerable<string> used = Enumerable.Range(0, OptionLevels.Names.Count).SelectMany(option =>
            Enumerable.Range(1, OptionLevels.Counts[option] - 1).SelectMany(level => ChangedBy(option, level)));

        Assert.Empty(_unused.Keys.Except(used));
    }

    [Fact]
    public void Every_level_but_the_first_uses_its_option_and_the_first_uses_none()
    {
        Assert.Equal(OptionLevels.Names.Count, OptionLevels.Counts.Count);
        for (int option = 0; option < OptionLevels.Names.Count; option++)
        {
            Assert.Empty(ChangedBy(option, 0));
            for (int level = 1; level < OptionLevels.Counts[option]; level++)
            {
                Assert.NotEmpty(ChangedBy(option, level));
            }
        }
    }

    [Fact]
    public void Every_level_of_every_option_stands_alone_once_at_least()
    {
        IEnumerable<(int Option, int Level)> levels = OptionLevels.Alone
            .Select(row => row.Index().Where(option => option.Item > 0).ToArray())
            .Where(used => used.Length == 1).Select(used => used[0]);

        Assert.Equal(OptionLevels.Counts.Sum(count => count - 1), levels.Distinct().Count());
        Assert.All(OptionLevels.Alone, row => Assert.True(OptionLevels.GoTogether(row)));
    }

    [Fact]
    public void Every_two_options_are_used_together_but_those_that_say_the_same_thing()
    {
        IReadOnlyList<int[]> rows = CoveringArray.Pairs([.. OptionLevels.Counts], OptionLevels.GoTogether);
        List<string> apart = [];
        for (int second = 0; second < OptionLevels.Names.Count; second++)
        {
            for (int first = 0; first < second; first++)
            {
                if (!rows.Any(row => row[first] > 0 && row[second] > 0))
                {
                    apart.Add($"{OptionLevels.Names[first]}, {OptionLevels.Names[second]}");
                }
            }
        }

        Assert.Equal(
            [
                "key-lengths, packed", "query-lengths, packed", "left-padding, packed", "depth-first, token-tree", "tail-mask, token-tree",
                "packed, token-tree",
            ],
            apart);
    }

    [Fact]
    public void Options_that_are_kept_apart_are_refused_together_by_the_runtime_or_share_a_property()
    {
        for (int first = 0; first < OptionLevels.Names.Count; first++)
        {
            for (int second = 0; second < OptionLevels.Names.Count; second++)
            {
                int[] levels = new int[OptionLevels.Names.Count];
                (levels[first], levels[second]) = (1, 1);
                if (!OptionLevels.GoTogether(levels))
                {
                    bool share = ChangedBy(first, 1).Intersect(ChangedBy(second, 1)).Any();
                    AttentionOptions both = OptionLevels.Draw(_shape, levels, 7);

                    Assert.True(
                        share || Record.Exception(() => new AttentionProblem(_shape, both)) is ShapeMismatchException,
                        $"{OptionLevels.Names[first]} and {OptionLevels.Names[second]}");
                }
            }
        }
    }

    private static IEnumerable<string> ChangedBy(int option, int level)
    {
        int[] levels = new int[OptionLevels.Names.Count];
        levels[option] = level;
        return Properties(OptionLevels.Draw(_shape, levels, 7)).Where(property => !Equals(property.Value, _unused[property.Key])).Select(property => property.Key);
    }

    private static Dictionary<string, object?> Properties(AttentionOptions options) => typeof(AttentionOptions)
        .GetProperties(BindingFlags.Public | BindingFlags.Instance).ToDictionary(property => property.Name, property => property.GetValue(options), StringComparer.Ordinal);
}
