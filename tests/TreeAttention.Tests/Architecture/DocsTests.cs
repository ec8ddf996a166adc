using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.RegularExpressions;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>Pages stay short, and what they point at is there.</summary>
public sealed partial class DocsTests
{
    private const int LinesOfReadme = 110;
    private const int LinesOfPage = 150;
    private const int LinesOfParagraph = 5;

    public static TheoryData<string> Pages => [.. RepositoryText.FilesBelow("", ".md")];

    [Theory, MemberData(nameof(Pages))]
    public void A_page_is_short(string page)
    {
        int limit = page == "README.md" ? LinesOfReadme : LinesOfPage;

        Assert.InRange(RepositoryText.LinesOf(page).Length, 1, limit);
    }

    [Theory, MemberData(nameof(Pages))]
    public void A_paragraph_is_short(string page)
    {
        Assert.Empty(LongParagraphs(RepositoryText.LinesOf(page)));
    }

    [Theory, MemberData(nameof(Pages))]
    public void What_a_page_points_at_is_there(string page)
    {
        string folder = Path.GetDirectoryName(page)!;

        Assert.Empty(Missing(RepositoryText.LinesOf(page), folder));
    }

    [Fact]
    public void Every_page_can_be_reached_from_the_readme()
    {
        var reached = new HashSet<string>();
        Follow("README.md", reached);

        Assert.Empty(RepositoryText.FilesBelow("docs", ".md").Except(reached));
    }

    [Fact]
    public void A_long_paragraph_and_a_missing_file_are_named()
    {
        string[] page =
        [
            "one", "two", "three", "four", "five", "", "- an item", "- another", "", "1", "2", "3", "4", "5", "6", "",
            "[gone](docs/gone.md) and [here](docs/library.md#faults), `src/Gone.cs`, `src/TreeAttention.Cli/*.cs`",
            "```sh", "`src/InCode.cs`", "```",
        ];

        Assert.Equal(["line 10: 6 lines"], LongParagraphs(page));
        Assert.Equal(["line 17: docs/gone.md", "line 17: src/Gone.cs"], Missing(page, ""));
    }

    // Paragraphs and items of lists; tables, code and headings are none.
    private static IEnumerable<string> LongParagraphs(string[] lines)
    {
        bool inCode = false;
        int first = 0;
        int count = 0;
        for (int i = 0; i <= lines.Length; i++)
        {
            string line = i < lines.Length ? lines[i] : "";
            bool isFence = line.TrimStart().StartsWith("```", StringComparison.Ordinal);
            bool isProse = !inCode && !isFence && line.Length > 0 && !NoProse().IsMatch(line);
            if (count > LinesOfParagraph && (!isProse || Item().IsMatch(line)))
            {
                yield return $"line {first}: {count} lines";
            }

            (first, count) = !isProse ? (0, 0) : count == 0 || Item().IsMatch(line) ? (i + 1, 1) : (first, count + 1);
            inCode ^= isFence;
        }
    }

    // Relative links, and paths of the repository between backticks; * stands for any name.
    private static IEnumerable<string> Missing(string[] lines, string folder)
    {
        bool inCode = false;
        for (int i = 0; i < lines.Length; i++)
        {
            inCode ^= lines[i].TrimStart().StartsWith("```", StringComparison.Ordinal);
            if (inCode)
            {
                continue;
            }

            IEnumerable<string> links = Link().Matches(lines[i]).Select(link => link.Groups[1].Value);
            IEnumerable<string> paths = RepositoryPath().Matches(lines[i]).Select(path => path.Groups[1].Value);
            foreach (string target in links.Where(link => !Exists(Path.Combine(folder, link))).Concat(paths.Where(path => !Exists(path))))
            {
                yield return $"line {i + 1}: {target}";
            }
        }
    }

    private static void Follow(string page, HashSet<string> reached)
    {
        if (!page.EndsWith(".md", StringComparison.Ordinal) || !reached.Add(page))
        {
            return;
        }

        string folder = Path.GetDirectoryName(page)!;
        foreach (Match link in RepositoryText.LinesOf(page).SelectMany(line => Link().Matches(line)))
        {
            Follow(Path.GetRelativePath(RepositoryText.Root, Path.Combine(RepositoryText.Root, folder, link.Groups[1].Value)), reached);
        }
    }

    private static bool Exists(string path)
    {
        string full = Path.Combine(RepositoryText.Root, path.TrimEnd('/'));
        return Path.GetFileName(full).Contains('*')
            ? Directory.EnumerateFileSystemEntries(Path.GetDirectoryName(full)!, Path.GetFileName(full)).Any()
            : Path.Exists(full);
    }

    [GeneratedRegex(@"\]\((?![a-z]+://|#)([^)#\s]+)[^)]*\)")]
    private static partial Regex Link();

    [GeneratedRegex("`((?:benchmarks|cluster|docs|native|samples|scripts|src|tests)/[^`\\s]*)`")]
    private static partial Regex RepositoryPath();

    [GeneratedRegex(@"^(\||#|    |!\[)")]
    private static partial Regex NoProse();

    [GeneratedRegex(@"^\s*([-*]|\d+\.)\s")]
    private static partial Regex Item();
}
