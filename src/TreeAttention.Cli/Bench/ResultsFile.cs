using System;
using System.IO;
using System.Text;
using Microsoft.Win32.SafeHandles;
using TreeAttention.Cli.Output;

namespace TreeAttention.Cli.Bench;

/// <summary>results.jsonl of a benchmark: a line for each finished row, on disk before the next one starts.</summary>
internal sealed class ResultsFile : IDisposable
{
    private static volatile string _kept = "";

    private readonly string _path;
    private readonly SafeFileHandle _file;
    private long _length;

    /// <summary>Creates the directory and the file.</summary>
    /// <exception cref="FaultException">The file exists or cannot be created (73).</exception>
    public ResultsFile(string directory)
    {
        _path = Path.Combine(directory, "results.jsonl");
        try
        {
            Directory.CreateDirectory(directory);
            _file = File.OpenHandle(_path, FileMode.CreateNew, FileAccess.Write, FileShare.Read);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            string reason = File.Exists(_path) ? "it exists already." : error.Message;
            throw new FaultException(
                FaultCode.CannotCreate, $"{_path} cannot be created: {reason} Results are never overwritten; give another --out.", error);
        }
    }

    /// <summary>What a message about an early end says of the rows: that they are kept, once there are any; else nothing.</summary>
    public static string Kept => _kept;

    /// <summary>Appends a row and syncs it; a row that cannot be written is printed to stderr, so that it is not lost.</summary>
    /// <exception cref="FaultException">The disk is full or failed (74).</exception>
    public void Append(string row)
    {
        byte[] line = Encoding.UTF8.GetBytes(row + "\n");
        try
        {
            RandomAccess.Write(_file, line, _length);
            RandomAccess.FlushToDisk(_file);
            _length += line.Length;
            _kept = $"finished rows are kept in {_path}, and ";
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            Terminal.Error.WriteLine($"#ROW {row}");
            DropHalf();
            throw new FaultException(
                FaultCode.InputOutput, $"{_path} could not be written: {error.Message.TrimEnd('.')}. Earlier rows are intact; this one is above, after #ROW.", error);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    // Readers take lines: half of one would be a fault of its own.
    private void DropHalf()
    {
        try
        {
            RandomAccess.SetLength(_file, _length);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            // The disk that failed is not asked twice; the first fault is on its way to the user.
        }
    }
}
