using System.Globalization;
using System.IO;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Bench;

/// <summary>The table of a benchmark, in the manner of nccl-tests: comments begin with #, one line a plan, #wrong beside the times.</summary>
internal static class BenchTable
{
    /// <summary>What is measured, on what, and the columns.</summary>
    public static void PrintHeader(TextWriter console, AttentionGroup group, BenchRequest request)
    {
        console.WriteLine($"# treeattn {ProductVersion.Text} bench: {group.Description}; {group.Context.Device.Description}");
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"# {request.Iterations} interleaved rounds after {request.Warmup}; each run starts at a barrier and counts as its slowest rank took"));
        console.WriteLine("# bytes, messages, collectives: of the busiest rank in one step. read%, copy%, fma%: of this machine's ceilings in the same rounds");
        console.WriteLine(
            $"# {"context",9} {"queries",7} {"algorithm",-20} {"median(us)",11} {"min(us)",11} {"p95(us)",11} {"comp(us)",11} {"comm(us)",10} "
            + $"{"bytes",11} {"msgs",5} {"colls",5} {"peak(MiB)",10} {"read%",6} {"copy%",6} {"fma%",6} {"error",8} {"#wrong",6}");
    }

    /// <summary>One line.</summary>
    public static void PrintRow(TextWriter console, BenchRow row)
    {
        StepMeasurement cost = row.Result.Cost!;
        string name = row.Result.Reduction is null ? row.Result.Algorithm : $"{row.Result.Algorithm}/{row.Result.Reduction}";
        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"  {row.Shape.KeyLength,9} {row.Shape.QueryLength,7} {name,-20} {cost.MedianUs,11:F1} {cost.MinUs,11:F1} {cost.P95Us,11:F1} "
            + $"{cost.ComputeUs,11:F1} {cost.CommunicationUs,10:F1} {cost.BytesSent,11} {cost.Messages,5} {cost.Collectives,5} "
            + $"{cost.PeakBytes / 1048576.0,10:F1} {Percent(row.ReadRatio),6} {Percent(row.CopyRatio),6} {Percent(row.FmaRatio),6} {Error(row.Result.Verification),8} {Wrong(row.Result.Verification),6}"));
        if (row.ModelUs is { } model)
        {
            console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"# {name}: the model p·c + (p-1)·V/b, from this run's compute and bandwidth, says {model:F1} us; measured {cost.MedianUs / model:F2} of it"));
        }
    }

    private static string Percent(double? ratio) => ratio is { } value ? (100 * value).ToString("F1", CultureInfo.InvariantCulture) : "-";

    private static string Error(VerificationReport? report) => report is null ? "-" : report.ErrorMax.ToString("0.0E0", CultureInfo.InvariantCulture);

    private static string Wrong(VerificationReport? report) => report is null ? "-" : report.Wrong.ToString(CultureInfo.InvariantCulture);
}

/// <summary>One line of a benchmark: a result, the sizes it was measured at, and its ratio to the machine's ceilings.</summary>
/// <param name="Result">What every result has.</param>
/// <param name="Shape">Sizes of the call.</param>
/// <param name="Nodes">Number of nodes.</param>
/// <param name="ReadRatio">Bytes of keys and values over the time, as a fraction of the read bandwidth of the same round; median.</param>
/// <param name="CopyRatio">The same as a fraction of the device's copy bandwidth; GPUs alone.</param>
/// <param name="FmaRatio">Useful floating-point operations over the time, as a fraction of the multiply-add rate of the same round; median.</param>
/// <param name="Ceiling">The rates themselves.</param>
/// <param name="ModelUs">What the cost model predicts from compute and bandwidth measured in the same rounds; rings alone.</param>
internal sealed record BenchRow(
    ResultRow Result, AttentionShape Shape, int Nodes, double? ReadRatio, double? CopyRatio, double? FmaRatio, CeilingMeasurement? Ceiling, double? ModelUs)
{
    /// <summary>One line of JSON; all keys are always there.</summary>
    public string ToJson() => ResultRow.Line(json =>
    {
        Result.WriteMembers(json);
        json.WriteNumber("batch", Shape.Batch);
        json.WriteNumber("query_len", Shape.QueryLength);
        json.WriteNumber("context", Shape.KeyLength);
        json.WriteNumber("heads", Shape.QueryHeads);
        json.WriteNumber("kv_heads", Shape.KvHeads);
        json.WriteNumber("head_dim", Shape.HeadDim);
        json.WriteNumber("value_dim", Shape.ValueDim);
        json.WriteNumber("nodes", Nodes);
        ResultRow.WriteNumber(json, "read_ratio", ReadRatio);
        ResultRow.WriteNumber(json, "copy_ratio", CopyRatio);
        ResultRow.WriteNumber(json, "fma_ratio", FmaRatio);
        ResultRow.WriteNumber(json, "read_gb_per_s", Median(Ceiling?.ReadBytesPerSecond) * 1e-9);
        ResultRow.WriteNumber(json, "copy_gb_per_s", Median(Ceiling?.CopyBytesPerSecond) * 1e-9);
        ResultRow.WriteNumber(json, "multiply_tflop_per_s", Median(Ceiling?.OperationsPerSecond) * 1e-12);
        ResultRow.WriteNumber(json, "model_us", ModelUs);
    });

    private static double? Median(double[]? rates) => rates is { Length: > 0 } ? RunRecorder.Quantile(rates, 0.5) : null;
}
