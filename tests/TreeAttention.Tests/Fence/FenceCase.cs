using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Tests.Fence;

/// <summary>One case of a golden file: what is run over which files, and what was said and written.</summary>
/// <param name="Name">Its name, after <c>==</c>.</param>
/// <param name="Steps">What is done, in order: a word and what follows it; README.md beside the golden files lists the words.</param>
/// <param name="Expected">The golden lines, without their <c>&gt; </c>.</param>
internal sealed record FenceCase(string Name, IReadOnlyList<(string Word, string Text)> Steps, IReadOnlyList<string> Expected)
{
    private const string Golden = ">";

    /// <summary>What follows each step of this word.</summary>
    public IEnumerable<string> Of(string word) => Steps.Where(step => step.Word == word).Select(step => step.Text);

    /// <summary>Reads a case from its lines, comments among them.</summary>
    public static FenceCase Parse(string name, IEnumerable<string> lines)
    {
        var steps = new List<(string, string)>();
        var expected = new List<string>();
        foreach (string line in lines.Where(line => line.Length > 0 && line[0] != '#'))
        {
            if (IsGolden(line))
            {
                expected.Add(line.Length > 2 ? line[2..] : "");
                continue;
            }

            string[] parts = line.Split(' ', 2, StringSplitOptions.TrimEntries);
            steps.Add((parts[0], parts.Length > 1 ? parts[1] : ""));
        }

        return new FenceCase(name, steps, expected);
    }

    /// <summary>A line of a golden file is an expectation.</summary>
    public static bool IsGolden(string line) => line.StartsWith(Golden, StringComparison.Ordinal);

    /// <summary>A line as an expectation stands in the file.</summary>
    public static string AsGolden(string line) => line.Length == 0 ? Golden : $"{Golden} {line}";
}
