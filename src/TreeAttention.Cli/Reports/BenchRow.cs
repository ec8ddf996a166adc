using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

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
