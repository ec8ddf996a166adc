using System.Globalization;
using System.IO;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

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
