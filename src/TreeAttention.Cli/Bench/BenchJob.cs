using System.Collections.Generic;
using System.IO;
using System.Linq;
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
        using ResultsFile? results = group.Together(() => group.IsRoot && request.Out is { } directory
            ? new ResultsFile(directory, request.Resume, SettingsText())
            : null);
        if (group.IsRoot && !request.Json)
        {
            BenchTable.PrintHeader(Terminal.Out, group, request);
        }

        long wrong = 0;
        foreach (int context in Contexts())
        {
            wrong += Take(context, results?.Finished(context)) ?? Measure(context, results);
        }

        return group.Gather(wrong)[0][0] == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    // What an earlier run has finished: rank 0 knows, and shows it again.
    private long? Take(int context, FinishedContext? finished)
    {
        if (!request.Resume || group.Gather(finished is null ? -1 : finished.Wrong)[0][0] < 0)
        {
            return null;
        }

        if (group.IsRoot)
        {
            foreach (string line in request.Json ? finished!.Rows : [$"# {context,9} was measured before: {finished!.Rows.Count} rows are in {request.Out}"])
            {
                Terminal.Out.WriteLine(line);
            }

            Terminal.Out.Flush();
        }

        return finished?.Wrong ?? 0;
    }

    private long Measure(int context, ResultsFile? results)
    {
        long wrong = 0;
        IEnumerable<BenchRow> rows = request.Combine
            ? new CombineBench(request, group, request.ShapeOf(context)).Run()
            : RunContext(context);
        foreach (BenchRow row in rows)
        {
            wrong += row.Result.Verification?.Wrong ?? 0;
            Report(row, results);
        }

        results?.Finish(context, wrong);
        return wrong;
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

        // Stored before it is shown: whoever has seen a row finds it in the file.
        results?.Append(row.ToJson());
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
    }

    private string SettingsText() => string.Join(
        "; ",
        Settings().Append(new("ranks", group.Description)).Append(new("device", group.Context.Device.Description)).Append(new("version", ProductVersion.Text))
            .Append(new("files", $"{request.Tensors?.Query} {request.Tensors?.Key} {request.Tensors?.Value}"))
            .Select(setting => $"{setting.Key} {setting.Value}"));

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
