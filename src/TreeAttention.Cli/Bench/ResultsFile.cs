using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using TreeAttention.Cli.Output;

namespace TreeAttention.Cli.Bench;

/// <summary>A directory of a benchmark: <c>results.jsonl</c>, a line for each finished row, and <c>progress.jsonl</c>, a line for each finished context.</summary>
/// <remarks>
/// A row is on disk before it is shown, a context is finished when its line of progress is: what a run that was killed left of an unfinished
/// context is dropped when the benchmark is resumed. One run at a time writes: the file <c>lock</c> is held, by a lock of the system
/// that ends with the process. Only rank 0 has one.
/// </remarks>
internal sealed class ResultsFile : IDisposable
{
    private const string Lock = "lock";
    private static volatile string _kept = "";

    private readonly string _path;
    private readonly SafeFileHandle _lock;
    private readonly SafeFileHandle _rows;
    private readonly SafeFileHandle _progress;
    private readonly Dictionary<int, FinishedContext> _finished = [];
    private long _rowsEnd;
    private long _progressEnd;

    /// <summary>Creates the directory and the files, or opens those of an earlier run.</summary>
    /// <param name="directory">The directory.</param>
    /// <param name="resume">Go on where an earlier run ended; without it results are never touched.</param>
    /// <param name="settings">What is measured and how, as text: a run is resumed by the same alone.</param>
    /// <exception cref="FaultException">
    /// There are results, another run writes there, or the files cannot be created (73); the earlier run measured something else (2).
    /// </exception>
    public ResultsFile(string directory, bool resume, string settings)
    {
        _path = Path.Combine(directory, "results.jsonl");
        try
        {
            Directory.CreateDirectory(directory);
            if (!resume && File.Exists(_path))
            {
                throw CannotCreate("it exists already.");
            }

            _lock = TakeLock(Path.Combine(directory, Lock));
            _rows = File.OpenHandle(_path, FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite);
            _progress = File.OpenHandle(Path.Combine(directory, "progress.jsonl"), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.ReadWrite);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            Dispose();
            throw CannotCreate(error.Message, error);
        }

        Resume(settings);
        _kept = _finished.Count > 0 ? Keeping : "";
    }

    /// <summary>What a message about an early end says of the rows: that they are kept, once there are any; else nothing.</summary>
    public static string Kept => _kept;

    private string Keeping => $"finished rows are kept in {_path} (go on with --resume), and ";

    /// <summary>What an earlier run has measured of a context; null when it has to be measured.</summary>
    public FinishedContext? Finished(int context) => _finished.GetValueOrDefault(context);

    /// <summary>Appends a row and syncs it; a row that cannot be written is printed to stderr, so that it is not lost.</summary>
    /// <exception cref="FaultException">The disk is full or failed (74).</exception>
    public void Append(string row)
    {
        try
        {
            _rowsEnd = Write(_rows, row, _rowsEnd);
            _kept = Keeping;
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            Terminal.Error.WriteLine($"#ROW {row}");
            throw Failed(error, "this one is above, after #ROW");
        }
    }

    /// <summary>All rows of a context are written.</summary>
    /// <exception cref="FaultException">The disk is full or failed (74).</exception>
    public void Finish(int context, long wrong)
    {
        try
        {
            string line = ResultRow.Line(json =>
            {
                json.WriteNumber("context", context);
                json.WriteNumber("wrong", wrong);
                json.WriteNumber("bytes", _rowsEnd);
            });
            _progressEnd = Write(_progress, line, _progressEnd);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw Failed(error, "a resumed run measures this context again");
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _progress?.Dispose();
        _rows?.Dispose();
        _lock?.Dispose();
    }

    private void Resume(string settings)
    {
        string[] progress = LinesOf(_progress, RandomAccess.GetLength(_progress));
        if (progress.Length == 0)
        {
            if (RandomAccess.GetLength(_rows) > 0)
            {
                throw CannotCreate("its rows have no progress.jsonl beside them, by which a run could be resumed.");
            }

            _progressEnd = Write(_progress, ResultRow.Line(json => json.WriteString("settings", settings)), 0);
            return;
        }

        using var before = JsonDocument.Parse(progress[0]);
        string earlier = before.RootElement.GetProperty("settings").GetString()!;
        if (earlier != settings)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{_path} is of another benchmark and cannot be resumed by this one; it has [{Rest(earlier, settings)}] where this one has [{Rest(settings, earlier)}]. "
                + "Give the same options, or another --out.");
        }

        foreach (string line in progress[1..])
        {
            using var context = JsonDocument.Parse(line);
            long end = context.RootElement.GetProperty("bytes").GetInt64();
            string[] rows = LinesOf(_rows, end)[LinesOf(_rows, _rowsEnd).Length..];
            _finished[context.RootElement.GetProperty("context").GetInt32()] = new(rows, context.RootElement.GetProperty("wrong").GetInt64());
            _rowsEnd = end;
        }

        // What an unfinished context, or a write that was cut short, has left.
        _progressEnd = progress.Sum(line => Encoding.UTF8.GetByteCount(line) + 1);
        RandomAccess.SetLength(_rows, _rowsEnd);
        RandomAccess.SetLength(_progress, _progressEnd);
    }

    // The parts of one text of settings that the other has not.
    private static string Rest(string settings, string other) => string.Join("; ", settings.Split("; ").Except(other.Split("; ")));

    // Whole lines alone: the last one may be cut.
    private static string[] LinesOf(SafeFileHandle file, long end)
    {
        byte[] bytes = new byte[Math.Min(end, RandomAccess.GetLength(file))];
        int read = RandomAccess.Read(file, bytes, 0);
        string text = Encoding.UTF8.GetString(bytes, 0, read);
        return text[..(text.LastIndexOf('\n') + 1)].Split('\n', StringSplitOptions.RemoveEmptyEntries);
    }

    private static long Write(SafeFileHandle file, string line, long at)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(line + "\n");
        try
        {
            RandomAccess.Write(file, bytes, at);
            RandomAccess.FlushToDisk(file);
            return at + bytes.Length;
        }
        catch (IOException)
        {
            DropHalf(file, at);
            throw;
        }
    }

    // Readers take lines: half of one would be a fault of its own.
    private static void DropHalf(SafeFileHandle file, long end)
    {
        try
        {
            RandomAccess.SetLength(file, end);
        }
        catch (IOException)
        {
            // The disk that failed is not asked twice; the first fault is on its way to the user.
        }
    }

    private SafeFileHandle TakeLock(string path)
    {
        string who = string.Create(CultureInfo.InvariantCulture, $"pid {Environment.ProcessId} on {Environment.MachineName}\n");
        try
        {
            SafeFileHandle held = File.OpenHandle(path, FileMode.OpenOrCreate, FileAccess.Write, FileShare.None);
            RandomAccess.SetLength(held, 0);
            RandomAccess.Write(held, Encoding.UTF8.GetBytes(who), 0);
            return held;
        }
        catch (IOException) when (File.Exists(path))
        {
            throw CannotCreate("another run writes there at this moment, as the file lock beside it says.");
        }
    }

    private FaultException CannotCreate(string reason, Exception? inner = null) => new(
        FaultCode.CannotCreate,
        $"{_path} cannot be created: {reason} Results are never overwritten; give another --out, or --resume to go on with an earlier run of the same options.",
        inner);

    private FaultException Failed(Exception error, string row) =>
        new(FaultCode.InputOutput, $"{_path} could not be written: {error.Message.TrimEnd('.')}. Earlier rows are intact; {row}.", error);
}

/// <summary>What an earlier run has measured of one context.</summary>
/// <param name="Rows">Its rows, as they were written.</param>
/// <param name="Wrong">Rows of output outside their bound.</param>
internal sealed record FinishedContext(IReadOnlyList<string> Rows, long Wrong);
