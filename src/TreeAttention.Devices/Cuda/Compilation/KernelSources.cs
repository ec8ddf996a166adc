using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Reflection;

namespace TreeAttention.Devices;

/// <summary>The kernels' sources and headers, as they lie in this assembly.</summary>
internal static class KernelSources
{
    private const string Prefix = "kernels/";

    /// <summary>Text of each header by the name that sources include it with.</summary>
    internal static IReadOnlyDictionary<string, string> Headers { get; } = Read(".cuh");

    private static readonly Dictionary<string, string> _sources = Read(".cu");

    /// <summary>Text of a source.</summary>
    internal static string Source(string file) => _sources[file];

    private static Dictionary<string, string> Read(string extension)
    {
        Assembly assembly = typeof(KernelSources).Assembly;
        var files = new Dictionary<string, string>(StringComparer.Ordinal);
        foreach (string name in assembly.GetManifestResourceNames()
            .Where(name => name.StartsWith(Prefix, StringComparison.Ordinal) && Path.GetExtension(name) == extension))
        {
            using var reader = new StreamReader(assembly.GetManifestResourceStream(name)!);
            files.Add(Path.GetFileName(name), reader.ReadToEnd());
        }

        return files;
    }
}
