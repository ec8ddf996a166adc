using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text;
using Microsoft.CodeAnalysis;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>The C# that pages show compiles as it stands, against the library as it is.</summary>
public sealed class DocumentedCodeTests
{
    // What pages take as given: a model's tensors, in the memory of the process and of a GPU.
    private const string Given = """
        internal static class Given
        {
            internal static int layer = 0;
            internal static float[] query = [], key = [], value = [], keyShard = [], valueShard = [], output = [], lse = [];
            internal static nint q = 0, k = 0, v = 0, o = 0, l = 0, stream = 0;
            internal static long qCount = 0, kCount = 0, vCount = 0, oCount = 0, lCount = 0;
        }
        """;

    public static TheoryData<string> Pages => [.. RepositoryText.FilesBelow("", ".md").Where(page => Blocks(RepositoryText.LinesOf(page)).Any())];

    [Fact]
    public void Pages_that_show_code_are_found()
    {
        HashSet<string> pages = [.. Pages.Select(page => page.Data)];

        Assert.Superset(new HashSet<string> { "README.md", "docs/library.md" }, pages);
    }

    [Theory, MemberData(nameof(Pages))]
    public void The_code_of_a_page_compiles(string page) => Assert.Empty(Compile(page, RepositoryText.LinesOf(page)));

    [Fact]
    public void Code_that_does_not_compile_is_named_by_page_and_line()
    {
        string[] page =
        [
            "words", "```csharp", "using var group = AttentionGroup.Join();", "```", "words", "  ```csharp", "  group.Decide(layer);", "  ```",
        ];

        string error = Assert.Single(Compile("docs/page.md", page));

        Assert.StartsWith("docs/page.md(7,", error, StringComparison.Ordinal);
        Assert.Contains("'Decide'", error, StringComparison.Ordinal);
    }

    // One program of all blocks: the first declares what the others go on with, each of these in a scope of its own.
    private static string[] Compile(string page, string[] lines)
    {
        (int Line, string Code)[] blocks = [.. Blocks(lines)];
        var program = new StringBuilder("using TreeAttention;\nusing static Given;\n");
        foreach ((int index, (int line, string code)) in blocks.Index())
        {
            string body = code.Replace("using TreeAttention;", "", StringComparison.Ordinal);
            program.Append(index == 0 ? "" : "{\n").Append($"#line {line} \"{page}\"\n{body}\n#line default\n").Append(index == 0 ? "" : "}\n");
        }

        return CSharpSource.Compile(
            "Page", OutputKind.ConsoleApplication, [new(page, program.ToString()), new("Given.cs", Given)],
            [typeof(AttentionShape).Assembly.Location, typeof(AttentionGroup).Assembly.Location], Stream.Null);
    }

    // Each block of C#, and the number of its first line.
    private static IEnumerable<(int Line, string Code)> Blocks(string[] lines)
    {
        for (int i = 0; i < lines.Length; i++)
        {
            if (lines[i].Trim() == "```csharp")
            {
                string[] code = [.. lines.Skip(i + 1).TakeWhile(line => line.Trim() != "```")];
                yield return (i + 2, string.Join('\n', code));
                i += code.Length;
            }
        }
    }
}
