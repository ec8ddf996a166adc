using System;
using System.Collections.Generic;
using System.Linq;
using System.Reflection;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Semantics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Semantics;

/// <summary>The table of options knows every option, and what the rest of the code asks it.</summary>
public class AttentionOptionTests
{
    public static TheoryData<string> Properties => [.. typeof(AttentionOptions).GetProperties(BindingFlags.Public | BindingFlags.Instance)
        .Select(property => property.Name).Where(name => name is not (nameof(AttentionOptions.TailMaskLength) or nameof(AttentionOptions.TailBiasLength)))];

    [Theory, MemberData(nameof(Properties))]
    public void Every_property_is_used_by_one_option_and_changes_what_ranks_compare(string property)
    {
        var options = new AttentionOptions();
        PropertyInfo setter = typeof(AttentionOptions).GetProperty(property)!;
        setter.SetValue(options, SampleOf(setter.PropertyType));

        AttentionOption used = Assert.Single(AttentionOption.All, option => option.IsUsedBy(options));

        Assert.NotEqual(used.Settings(new AttentionOptions()), used.Settings(options));
    }

    [Fact]
    public void No_option_is_used_by_a_call_without_options() => Assert.DoesNotContain(AttentionOption.All, option => option.IsUsedBy(new AttentionOptions()));

    [Fact]
    public void Settings_and_names_are_all_different()
    {
        Setting[] settings = [.. AttentionOption.All.SelectMany(option => option.Text is { } text ? [text.Setting] : option.Arrays.Select(array => array.Setting))];

        Assert.Equal(settings.Distinct(), settings);
        Assert.Equal(AttentionOption.All.Select(option => option.Name).Distinct(), AttentionOption.All.Select(option => option.Name));
    }

    [Theory, MemberData(nameof(Aligned))]
    public void Queries_have_positions_of_their_own_where_positions_decide_what_they_see(AttentionOptions options, bool areAligned) =>
        Assert.Equal(areAligned, options.AreQueriesAligned);

    public static IEnumerable<TheoryDataRow<AttentionOptions, bool>> Aligned =>
    [
        new(new(), false),
        new(new() { Causal = true }, true),
        new(new() { WindowLeft = 0 }, true),
        new(new() { WindowRight = 3 }, true),
        new(new() { LocalChunk = 3 }, true),
        new(new() { DfsStart = [0], DfsEnd = [0] }, true),
        new(new() { AlibiSlopes = [1], Softcap = 2, TailMask = [true], TailMaskLength = 1 }, false),
    ];

    [Theory, InlineData("scale", "0x1"), InlineData("scale", "1e39"), InlineData("window", "3"), InlineData("window", "-2,0"), InlineData("softcap", "-1")]
    [InlineData("chunk-local", "0"), InlineData("chunk-local", "-2"), InlineData("chunk-local", "1.5"), InlineData("lse-base", "10")]
    public void A_text_that_breaks_its_rule_gives_no_options(string option, string text) =>
        Assert.Null(AttentionOption.All.Single(other => other.Name == option).Text!.Read(new AttentionOptions(), text));

    private static object SampleOf(Type type) => type switch
    {
        _ when type == typeof(double?) => 0.5,
        _ when type == typeof(bool) => true,
        _ when type == typeof(int) => 3,
        _ when type == typeof(float) => 2f,
        { IsEnum: true } => Enum.GetValues(type).GetValue(1)!,
        _ => Array.CreateInstance(type.GetElementType()!, 4),
    };
}
