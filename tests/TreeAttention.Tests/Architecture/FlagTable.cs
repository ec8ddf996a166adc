using System.Collections.Generic;
using System.Linq;
using System.Text.RegularExpressions;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Tests.Architecture;

/// <summary>The command line's flag of each setting, read from its source: the tests use no type of the program.</summary>
internal static partial class FlagTable
{
    /// <summary>Flags, some with a value, by setting.</summary>
    public static IReadOnlyDictionary<Setting, string> Flags { get; } = RepositoryText.LinesOf("src/TreeAttention.Cli/Arguments/Flags.cs")
        .Select(line => Entry().Match(line))
        .Where(entry => entry.Success)
        .ToDictionary(entry => (Setting)typeof(Setting).GetProperty(entry.Groups[1].Value)!.GetValue(null)!, entry => entry.Groups[2].Value);

    [GeneratedRegex("""\[Setting\.(\w+)\] = "([^"]+)",""")]
    private static partial Regex Entry();
}
