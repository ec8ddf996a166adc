using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Text.RegularExpressions;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>Lines can be read without scrolling, and pages name each flag of the help.</summary>
public sealed partial class TextTests
{
    private const string Help = "tests/golden/fence/results-help.cases";

    [Fact]
    public void Lines_of_native_code_and_scripts_end_where_the_editor_config_says()
    {
        Match setting = RepositoryText.LinesOf(".editorconfig").Select(line => Limit().Match(line)).Single(match => match.Success);
        int limit = int.Parse(setting.Groups[1].ValueSpan, CultureInfo.InvariantCulture);
        string[] files = [.. RepositoryText.FilesBelow("", ".cu", ".cuh", ".c", ".cpp", ".h", ".hpp", ".py", ".sh", ".cmake", "CMakeLists.txt")];

        Assert.NotEmpty(files);
        Assert.Empty(files.SelectMany(file => LongLines(file, RepositoryText.LinesOf(file), limit)));
        Assert.Equal(["planted:2"], LongLines("planted", [new('a', limit), new('a', limit + 1)], limit));
    }

    [Fact]
    public void Pages_name_each_flag_of_the_help()
    {
        string pages = string.Join('\n', RepositoryText.FilesBelow("docs", ".md").Append("README.md").SelectMany(RepositoryText.LinesOf));
        HashSet<string> told = [.. Flag().Matches(pages).Select(flag => flag.Value)];

        string[] flags = [.. RepositoryText.LinesOf(Help).SelectMany(line => Flag().Matches(line)).Select(flag => flag.Value).Distinct()];

        Assert.Contains("--reproducible", flags);
        Assert.Subset(new HashSet<string>([.. told, "--help", "--version"]), flags.ToHashSet());
    }

    private static IEnumerable<string> LongLines(string file, string[] lines, int limit) =>
        lines.Index().Where(line => line.Item.Length > limit).Select(line => $"{file}:{line.Index + 1}");

    [GeneratedRegex("^max_line_length = ([0-9]+)$")]
    private static partial Regex Limit();

    [GeneratedRegex("--[a-z][a-z0-9-]*")]
    private static partial Regex Flag();
}
