using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;

namespace TreeAttention.Bindings;

/// <summary>What to generate: the options of a ClangSharp response file that this generator knows.</summary>
internal sealed record ResponseFile(string ClassName, string Namespace, string Library, IReadOnlySet<string> Included)
{
    /// <summary>Reads a file of one option or value a line.</summary>
    public static ResponseFile Read(string path)
    {
        var values = new Dictionary<string, List<string>>(StringComparer.Ordinal);
        List<string>? current = null;
        foreach (string line in File.ReadLines(path).Select(line => line.Trim()).Where(line => line.Length > 0))
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

        return new ResponseFile(
            values["--methodClassName"].Single(), values["--namespace"].Single(), values["--libraryPath"].Single(),
            values["--include"].ToHashSet(StringComparer.Ordinal));
    }
}
