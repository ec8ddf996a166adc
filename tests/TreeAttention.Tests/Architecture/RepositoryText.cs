using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace TreeAttention.Tests.Architecture;

/// <summary>The repository's own text, as tests of its form read it.</summary>
internal static class RepositoryText
{
    private static readonly string[] _made = ["artifacts", "bin", "obj", "__pycache__"];

    /// <summary>The folder that has the solution.</summary>
    public static string Root { get; } = FindRoot();

    /// <summary>A file's lines.</summary>
    /// <param name="path">Relative to <see cref="Root"/>.</param>
    public static string[] LinesOf(string path) => File.ReadAllLines(Path.Combine(Root, path));

    /// <summary>Files below a folder whose names end so, relative to <see cref="Root"/> and sorted; what builds make is left out.</summary>
    /// <param name="folder">Relative to <see cref="Root"/>; "" is all of it.</param>
    /// <param name="endings">As <c>.cs</c>.</param>
    public static IEnumerable<string> FilesBelow(string folder, params IReadOnlyList<string> endings) =>
        from path in Walk(new DirectoryInfo(Path.Combine(Root, folder)))
        where endings.Any(ending => path.EndsWith(ending, StringComparison.Ordinal))
        orderby path
        select Path.GetRelativePath(Root, path);

    private static IEnumerable<string> Walk(DirectoryInfo folder) =>
    [
        .. folder.EnumerateFiles().Select(file => file.FullName),
        .. folder.EnumerateDirectories()
            .Where(child => !child.Name.StartsWith('.') && !_made.Contains(child.Name))
            .SelectMany(Walk),
    ];

    private static string FindRoot()
    {
        for (DirectoryInfo? folder = new(AppContext.BaseDirectory); folder is not null; folder = folder.Parent)
        {
            if (File.Exists(Path.Combine(folder.FullName, "TreeAttention.Distributed.sln")))
            {
                return folder.FullName;
            }
        }

        throw new DirectoryNotFoundException($"{AppContext.BaseDirectory} lies in no copy of the repository.");
    }
}
