using System.Collections.Generic;
using System.Linq;
using Xunit;

namespace TreeAttention.Tests.Fence;

/// <summary>The cases of the golden files, as theories take them.</summary>
internal static class FenceCases
{
    /// <summary>Every case that is run.</summary>
    public static IEnumerable<(string File, string Name)> All =>
        FenceFile.All.Where(file => file != "files").SelectMany(file => new FenceFile(file).Names.Select(name => (file, name)));

    /// <summary>Cases of the golden files whose names begin with this word.</summary>
    public static IEnumerable<TheoryDataRow<string, string>> Of(string word) =>
        All.Where(row => row.File.Split('-')[0] == word).Select(row => new TheoryDataRow<string, string>(row.File, row.Name));
}
