using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>One line of a benchmark: a result, the sizes it was measured at, and its ratio to the machine's ceilings.</summary>
/// <param name="Result">What every result has.</param>
/// <param name="Shape">Sizes of the call.</param>
/// <param name="Nodes">Number of nodes.</param>
/// <param name="ReadRatio">Bytes of keys and values over the time, as a fraction of the read bandwidth of the same round; median.</param>
/// <param name="FmaRatio">Useful floating-point operations over the time, as a fraction of the FMA rate of the same round; median.</param>
/// <param name="ModelUs">What the cost model predicts from compute and bandwidth measured in the same rounds; rings alone.</param>
internal sealed record BenchRow(ResultRow Result, AttentionShape Shape, int Nodes, double? ReadRatio, double? FmaRatio, double? ModelUs)
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
        json.WriteNumber("nodes", Nodes);
        ResultRow.WriteNumber(json, "read_ratio", ReadRatio);
        ResultRow.WriteNumber(json, "fma_ratio", FmaRatio);
        ResultRow.WriteNumber(json, "model_us", ModelUs);
    });
}
