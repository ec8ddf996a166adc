using System;
using System.Collections.Generic;
using System.IO;
using System.Text;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;

namespace TreeAttention.Cli.Bench;

/// <summary>One rank's part of <c>treeattn bench</c>: checks, then times, context after context.</summary>
internal sealed class BenchJob(BenchRequest request, AttentionGroup group)
{
    /// <summary>Does the work; every rank returns the same code.</summary>
    public FaultCode Run()
    {
        RunSettings.Begin(group, "bench");
        group.Agree(Settings());
        using ResultsFile? results = group.Together(() => group.IsRoot && request.Out is { } directory ? new ResultsFile(directory) : null);
        if (group.IsRoot && !request.Json)
        {
            BenchTable.PrintHeader(Terminal.Out, group, request);
        }

        long wrong = 0;
        foreach (int context in Contexts())
        {
            IEnumerable<BenchRow> rows = request.Combine
                ? new CombineBench(request, group, request.ShapeOf(context)).Run()
                : RunContext(context);
            foreach (BenchRow row in rows)
            {
                wrong += row.Result.Verification?.Wrong ?? 0;
                Report(row, results);
            }
        }

        return group.Gather(wrong)[0][0] == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    private List<int> Contexts()
    {
        if (request.Tensors is not null)
        {
            return [0];
        }

        var contexts = new List<int>();
        for (long context = request.Begin; context <= request.End; context *= request.Factor)
        {
            contexts.Add((int)context);
        }

        return contexts;
    }

    private IReadOnlyList<BenchRow> RunContext(int context)
    {
        using IBenchInputs inputs = group.Together<IBenchInputs>(() => request.Tensors is { } files
            ? new FileBenchInputs(files)
            : new SyntheticBenchInputs(
                request.ShapeOf(context), request.StorageType, request.Scales.Read(request.StorageType, request.KvHeads), request.ValueFromKey is not null));
        group.Agree([.. group.Together(() => inputs.Settings), new("--dtype", inputs.StorageType.ShortName())]);
        inputs.SettleScales(group, request.Scales);
        using var bench = new AttentionBench(request, group, inputs);
        return bench.Run();
    }

    private void Report(BenchRow row, ResultsFile? results)
    {
        if (!group.IsRoot)
        {
            return;
        }

        TextWriter console = Terminal.Out;
        if (request.Json)
        {
            console.WriteLine(row.ToJson());
        }
        else
        {
            BenchTable.PrintRow(console, row);
        }

        console.Flush();
        results?.Append(row.ToJson());
    }

    private List<KeyValuePair<string, string>> Settings() =>
    [
        new("-b -e -f", $"{request.Begin} {request.End} {request.Factor}"),
        new("-n -w -c", $"{request.Iterations} {request.Warmup} {request.Check}"),
        new("sizes", request.ShapeOf(request.Begin).ToString()),
        new("--dtype", request.StorageType.ShortName()),
        new("--key-scale --value-scale", $"{request.Scales.Key} {request.Scales.Value}"),
        .. RunSettings.Of(request.Plan),
        .. RunSettings.Of(request.Semantics.Flags),
        new("--ceiling --combine", $"{request.Ceiling} {request.Combine}"),
        new("input", request.Tensors is null ? "synthetic" : "files"),
    ];
}

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
                FaultCode.CannotCreate, $"{path} cannot be created: {(File.Exists(path) ? "it exists already." : error.Message)} Results are never overwritten; give another --out.", error);
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
