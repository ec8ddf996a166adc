using System;
using System.Diagnostics;
using System.IO;
using System.Text;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Output;

/// <summary>Standard output and error as plain UTF-8 streams: no escape codes, whatever terminal a launcher pretends.</summary>
internal static class Terminal
{
    /// <summary>Standard output; flushed by whoever ends a report.</summary>
    public static TextWriter Out { get; } = new StreamWriter(StandardStream.Output, new UTF8Encoding(false), 4096) { AutoFlush = false };

    /// <summary>Standard error, unbuffered, for any thread.</summary>
    public static TextWriter Error { get; } =
        TextWriter.Synchronized(new StreamWriter(StandardStream.Error, new UTF8Encoding(false), 256) { AutoFlush = true });

    /// <summary>Lets the last lines out.</summary>
    /// <param name="code">How the run ended.</param>
    /// <returns>The same code, or that of the stream where a run that was well could not say so.</returns>
    public static int End(int code)
    {
        try
        {
            Out.Flush();
            return code;
        }
        catch (FaultException fault)
        {
            Error.WriteLine($"treeattn: {fault.Message}");
            return code == 0 ? (int)fault.Code : code;
        }
    }
}

/// <summary>A bar on the error stream that says how far a long run is: on a terminal alone, so that files and pipes stay clean.</summary>
internal sealed class ProgressLine(bool speaks, int steps, string unit = "steps") : IDisposable
{
    private const int Width = 40;
    private static readonly TimeSpan _interval = TimeSpan.FromMilliseconds(200);

    private readonly bool _isShown = speaks && StandardStream.IsErrorTerminal;
    private readonly long _start = Stopwatch.GetTimestamp();
    private long _last = Stopwatch.GetTimestamp();
    private int _written;

    /// <summary>Says that so many steps, or what else is counted, are done.</summary>
    public void Show(int done)
    {
        if (!_isShown || (Stopwatch.GetElapsedTime(_last) < _interval && done < steps))
        {
            return;
        }

        _last = Stopwatch.GetTimestamp();
        int filled = (int)((long)Width * done / steps);
        double left = Stopwatch.GetElapsedTime(_start).TotalSeconds / done * (steps - done);
        string line = $"[{new string('=', filled)}{new string(' ', Width - filled)}] {done}/{steps} {unit}, {left:F0} s left";
        Terminal.Error.Write("\r" + line.PadRight(_written));
        _written = line.Length;
    }

    /// <summary>Takes the bar away.</summary>
    public void Dispose()
    {
        if (_written > 0)
        {
            Terminal.Error.Write("\r" + new string(' ', _written) + "\r");
        }
    }
}
