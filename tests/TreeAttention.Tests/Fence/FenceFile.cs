using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Threading;

namespace TreeAttention.Tests.Fence;

/// <summary>A golden file of cases, <c>tests/golden/fence/NAME.cases</c>: read, and written again with what was seen.</summary>
internal sealed class FenceFile
{
    private const string Ending = ".cases";
    private const string Mark = "== ";
    private static readonly Lock _writing = new();
    private static readonly string _folder = FindFolder();
    private readonly string _path;
    private readonly List<(string Name, List<string> Lines)> _sections = [];

    /// <summary>Reads the file of this name.</summary>
    public FenceFile(string name)
    {
        _path = Path.Combine(_folder, name + Ending);
        _sections.Add(("", []));
        foreach (string line in File.ReadAllLines(_path))
        {
            if (line.StartsWith(Mark, StringComparison.Ordinal))
            {
                _sections.Add((line[Mark.Length..], []));
            }
            else
            {
                _sections[^1].Lines.Add(line);
            }
        }
    }

    /// <summary>Names of all golden files.</summary>
    public static IReadOnlyList<string> All =>
        [.. Directory.GetFiles(_folder, "*" + Ending).Select(path => Path.GetFileNameWithoutExtension(path)).Order(StringComparer.Ordinal)];

    /// <summary>The cases in their order.</summary>
    public IReadOnlyList<string> Names => [.. _sections.Skip(1).Select(section => section.Name)];

    /// <summary>The case of this name.</summary>
    public FenceCase Case(string name) => FenceCase.Parse(name, _sections.Single(section => section.Name == name).Lines);

    /// <summary>Puts what was seen in the place of what was expected, in the file too.</summary>
    public static void Rewrite(string file, string name, IReadOnlyList<string> seen)
    {
        lock (_writing)
        {
            var golden = new FenceFile(file);
            golden.Replace(name, seen);
            golden.Save();
        }
    }

    private void Replace(string name, IReadOnlyList<string> seen)
    {
        List<string> lines = _sections.Single(section => section.Name == name).Lines;
        lines.RemoveAll(FenceCase.IsGolden);
        while (lines.Count > 0 && lines[^1].Length == 0)
        {
            lines.RemoveAt(lines.Count - 1);
        }

        lines.AddRange(seen.Select(FenceCase.AsGolden));
        lines.Add("");
    }

    private void Save()
    {
        IEnumerable<string> text = _sections.SelectMany(section =>
            section.Name.Length == 0 ? section.Lines : section.Lines.Prepend(Mark + section.Name));
        File.WriteAllText(_path, string.Join('\n', text).TrimEnd('\n') + "\n");
    }

    private static string FindFolder()
    {
        for (string? folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            string golden = Path.Combine(folder, "tests", "golden", "fence");
            if (Directory.Exists(golden))
            {
                return golden;
            }
        }

        throw new DirectoryNotFoundException("There is no tests/golden/fence above the test program.");
    }
}
