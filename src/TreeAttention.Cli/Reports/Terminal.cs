using System;
using System.IO;
using System.Text;

namespace TreeAttention.Cli;

/// <summary>Standard output and error as plain UTF-8 streams: no escape codes, whatever terminal a launcher pretends.</summary>
internal static class Terminal
{
    /// <summary>Standard output; flushed by whoever ends a report.</summary>
    public static TextWriter Out { get; } = new StreamWriter(Console.OpenStandardOutput(), new UTF8Encoding(false), 4096) { AutoFlush = false };

    /// <summary>Standard error, unbuffered.</summary>
    public static TextWriter Error { get; } = new StreamWriter(Console.OpenStandardError(), new UTF8Encoding(false), 256) { AutoFlush = true };
}
