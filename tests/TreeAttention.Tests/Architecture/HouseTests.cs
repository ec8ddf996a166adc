using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using Xunit;

namespace TreeAttention.Tests.Architecture;

/// <summary>The counts that keep the house liveable; <c>scripts/house.sh</c> prints them.</summary>
public sealed class HouseTests(ITestOutputHelper output)
{
    private const int LongestFile = 550;
    private const int MostPublicTypes = 48;

    [Fact]
    public void Files_are_few_and_short_enough_to_be_read()
    {
        CodeMap map = CodeMap.Current;
        (string File, int Lines)[] files = [.. map.Files.Zip(map.Lengths).Where(file => !file.First.EndsWith(".g.cs", StringComparison.Ordinal)).OrderBy(file => file.Second)];
        output.WriteLine($"files of src      {map.Files.Count}");
        output.WriteLine($"lines of src      {map.Lengths.Sum()}");
        output.WriteLine($"median of a file  {files[files.Length / 2].Lines}");
        output.WriteLine($"nine of ten below {files[files.Length * 9 / 10].Lines}");
        output.WriteLine($"longest           {files[^1].Lines}  {files[^1].File}");

        Assert.True(files[^1].Lines <= LongestFile, $"{files[^1].File} has {files[^1].Lines} lines, more than {LongestFile}.");
        Assert.InRange(files[files.Length / 2].Lines, 100, 160);
    }

    [Fact]
    public void Rooms_form_no_circle()
    {
        CodeMap map = CodeMap.Current;
        IReadOnlyList<IReadOnlyList<string>> cycles = CodeMap.Cycles(map.RoomEdges);
        output.WriteLine($"rooms of src      {map.Rooms.Count}");
        output.WriteLine($"circles of rooms  {cycles.Count}");

        Assert.True(cycles.Count == 0, string.Join('\n', cycles.Select(cycle => string.Join(" <-> ", cycle))));
    }

    [Fact]
    public void A_planted_circle_is_found()
    {
        CodeEdge[] edges = [new("a", "b", "x", "y"), new("b", "c", "x", "y"), new("c", "a", "x", "y"), new("c", "d", "x", "y")];

        Assert.Equal(["a", "b", "c"], Assert.Single(CodeMap.Cycles(edges)));
    }

    [Fact]
    public void The_package_shows_few_types_in_one_namespace()
    {
        IReadOnlyList<string> types = CodeMap.PublicTypes;
        output.WriteLine($"public types      {types.Count}");

        Assert.InRange(types.Count, 10, MostPublicTypes);
        Assert.All(types, type => Assert.Equal("TreeAttention", type[..type.LastIndexOf('.')]));
    }

    [Fact]
    public void Rooms_have_names_of_their_own()
    {
        string[] nameless = ["Utils", "Util", "Helpers", "Helper", "Common", "Misc", "Manager", "Managers", "Shared", "Core"];

        Assert.DoesNotContain(CodeMap.Current.Files, file => file.Split('/').Any(part => nameless.Contains(Path.GetFileNameWithoutExtension(part))));
    }
}
