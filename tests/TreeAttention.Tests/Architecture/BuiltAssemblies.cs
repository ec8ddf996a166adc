using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace TreeAttention.Tests.Architecture;

/// <summary>The assemblies that this checkout was built to, beside the tests and of the program.</summary>
internal static class BuiltAssemblies
{
    /// <summary>The program's assembly, which is not copied to the tests.</summary>
    public static string Program { get; } = Path.Combine(
        RepositoryText.Root, "artifacts", "bin", "TreeAttention.Cli",
        $"{Path.GetFileName(Path.TrimEndingDirectorySeparator(AppContext.BaseDirectory))}_linux-x64", "treeattn.dll");

    /// <summary>Paths of the assemblies that are there beside ours: the framework's and those of packages.</summary>
    public static IEnumerable<string> OfOthers => ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(Path.PathSeparator)
        .Where(path => !Path.GetFileName(path).StartsWith("TreeAttention.", StringComparison.Ordinal));

    /// <summary>Where an assembly of ours lies.</summary>
    /// <param name="name">Its name: <c>TreeAttention.Devices</c>, <c>treeattn</c>.</param>
    public static string PathOf(string name) => name == "treeattn" ? Program : Path.Combine(AppContext.BaseDirectory, $"{name}.dll");
}
