using System;
using System.IO;
using System.Text;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>results.jsonl of a benchmark: a line for each finished row, on disk before the next one starts.</summary>
internal sealed class ResultsFile : IDisposable
{
    private readonly FileStream _stream;

    /// <summary>Creates the directory and the file.</summary>
    /// <exception cref="FaultException">The file exists or cannot be created (73).</exception>
    public ResultsFile(string directory)
    {
        string path = Path.Combine(directory, "results.jsonl");
        try
        {
            Directory.CreateDirectory(directory);
            _stream = new FileStream(path, FileMode.CreateNew, FileAccess.Write, FileShare.Read);
        }
        catch (Exception error) when (error is IOException or UnauthorizedAccessException)
        {
            throw new FaultException(
                FaultCode.CannotCreate, $"{path} cannot be created: {error.Message} Results are never overwritten; give another --out.", error);
        }
    }

    /// <summary>Appends a row and syncs it; a row that cannot be written is printed to stderr, so that it is not lost.</summary>
    /// <exception cref="FaultException">The disk is full or failed (74).</exception>
    public void Append(string row)
    {
        try
        {
            _stream.Write(Encoding.UTF8.GetBytes(row + "\n"));
            _stream.Flush(flushToDisk: true);
        }
        catch (IOException error)
        {
            Terminal.Error.WriteLine($"#ROW {row}");
            throw new FaultException(FaultCode.InputOutput, $"{_stream.Name} could not be written: {error.Message} Earlier rows are intact.", error);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _stream.Dispose();
}
