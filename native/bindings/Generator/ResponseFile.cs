using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Bindings;

/// <summary>What to generate: the options of a ClangSharp response file that this generator knows.</summary>
/// <remarks>A file without <c>--methodClassName</c> is one of structures alone, those of the kernels.</remarks>
internal sealed record ResponseFile(
    string File, string ClassName, string Namespace, string Library, IReadOnlySet<string> Included, IReadOnlyDictionary<string, string> Renamed)
{
    /// <summary>Reads a file of one option or value a line.</summary>
    public static ResponseFile Read(string path)
    {
        var values = new Dictionary<string, List<string>>(StringComparer.Ordinal);
        List<string>? current = null;
        foreach (string line in System.IO.File.ReadLines(path).Select(line => line.Trim()).Where(line => line.Length > 0))
        {
            if (line.StartsWith("--", StringComparison.Ordinal))
            {
                values[line] = current = [];
            }
            else
            {
                (current ?? throw new FormatException($"{path} begins with '{line}', which belongs to no option.")).Add(line);
            }
        }

        string[] renamed = [.. values.GetValueOrDefault("--remap", [])];
        return new ResponseFile(
            values["--file"].Single(), SingleOrEmpty(values, "--methodClassName"), values["--namespace"].Single(), SingleOrEmpty(values, "--libraryPath"),
            values["--include"].ToHashSet(StringComparer.Ordinal),
            renamed.Select(line => line.Split('=')).ToDictionary(pair => pair[0], pair => pair[1], StringComparer.Ordinal));
    }

    private static string SingleOrEmpty(Dictionary<string, List<string>> values, string option) =>
        values.TryGetValue(option, out List<string>? lines) ? lines.Single() : "";
}
