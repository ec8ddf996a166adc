using System;
using System.Collections.Generic;
using System.Linq;
using System.Text.RegularExpressions;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Processes;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>The README's table of what runs where says what the code has: no more, no less.</summary>
public sealed partial class FeatureMatrixTests
{
    private static readonly string[] _commands = ["attend", "decode", "bench", "verify"];
    private static readonly Row[] _rows = [.. ReadRows(RepositoryText.LinesOf("README.md"))];

    [Fact]
    public void Algorithms_are_those_of_the_enumeration()
    {
        Assert.Equal(Enum.GetValues<AttentionAlgorithm>().Select(algorithm => algorithm.Name()), NamesOf("algorithms"));
    }

    [Fact]
    public void Reductions_are_those_that_users_choose()
    {
        IEnumerable<ReductionKind> chosen = Enum.GetValues<ReductionKind>().Except([ReductionKind.Auto, ReductionKind.Lanes]);

        Assert.Equal(chosen.Select(kind => kind.Name()), NamesOf("reductions of `tree`"));
    }

    [Fact]
    public void Storage_types_are_those_that_keys_can_have()
    {
        Assert.Equal(StorageType.Stored.Select(type => type.Name), NamesOf("storage"));
    }

    [Fact]
    public void Options_are_those_of_the_option_table()
    {
        IEnumerable<string> flags = AttentionOption.All.SelectMany(FlagsOf);

        IEnumerable<Row> rows = _rows.Where(row => row.What.StartsWith("options", StringComparison.Ordinal));
        Assert.Equal(flags.Order(), rows.SelectMany(row => row.Names).Order());
    }

    [Fact]
    public void A_flag_is_in_the_help_of_the_commands_that_have_it()
    {
        foreach (string command in _commands.Except(["verify"])) // verify tries all of them by itself
        {
            string help = HelpOf(command);
            Assert.All(
                FlagRows().SelectMany(row => row.Names, (row, flag) => (row, flag)),
                given => Assert.Equal(given.row.Has(command), help.Contains($"  {given.flag} ", StringComparison.Ordinal)));
        }
    }

    [Fact]
    public void The_help_of_a_command_that_has_no_such_flag_is_noticed()
    {
        Assert.DoesNotContain("  --alibi ", HelpOf("bench"), StringComparison.Ordinal);
        Assert.Contains("  --alibi ", HelpOf("attend"), StringComparison.Ordinal);
    }

    private static IEnumerable<Row> FlagRows() => _rows.Where(row => row.Names[0].StartsWith("--", StringComparison.Ordinal));

    private static IEnumerable<string> FlagsOf(AttentionOption option) =>
        option.Text is { } text ? [FlagTable.Flags[text.Setting]] : option.Arrays.Select(array => FlagTable.Flags[array.Setting]);

    private static string[] NamesOf(string what) => Assert.Single(_rows, row => row.What.StartsWith(what, StringComparison.Ordinal)).Names;

    private static string HelpOf(string command) => TreeattnProcess.Run([command, "--help"]).Exits(0).Output;

    private static IEnumerable<Row> ReadRows(string[] lines)
    {
        string[] table =
        [
            .. lines.SkipWhile(line => !line.StartsWith("| what | `attend`", StringComparison.Ordinal)).TakeWhile(line => line.Length > 0),
        ];
        Assert.Equal($"| what | {string.Join(" | ", _commands.Select(command => $"`{command}`"))} |", table[0]);
        foreach (string line in table.Skip(2))
        {
            string[] cells = line.Trim('|').Split('|', StringSplitOptions.TrimEntries);
            string names = cells[0][(cells[0].IndexOf(':', StringComparison.Ordinal) + 1)..];
            yield return new Row(cells[0], [.. Name().Matches(names).Select(name => name.Groups[1].Value)], [.. cells[1..].Select(IsYes)]);
        }
    }

    private static bool IsYes(string cell) => cell switch
    {
        "yes" => true,
        "no" => false,
        _ => throw new FormatException($"A cell says '{cell}', but it may be yes or no."),
    };

    [GeneratedRegex("`([^`]+)`")]
    private static partial Regex Name();

    private sealed record Row(string What, string[] Names, bool[] Cells)
    {
        public bool Has(string command) => Cells[Array.IndexOf(_commands, command)];
    }
}
