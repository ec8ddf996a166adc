using System.Globalization;
using System.IO;
using System.Linq;
using TreeAttention.Cli.Output;
using TreeAttention.Runtime.Measurement;

namespace TreeAttention.Cli.Decode;

/// <summary>What <c>treeattn decode</c> prints on rank 0.</summary>
internal static class DecodeReport
{
    // Of the steps, compared with one another to see whether time is flat.
    private const int Parts = 10;

    /// <summary>A few lines for a person and, with <c>--json</c>, one object on the last line.</summary>
    public static void Print(
        DecodeRequest request, AttentionGroup group, DecodeInputs inputs, ShardedKvCache cache, DecodeStep step, DecodeOutcome outcome)
    {
        AttentionPlan plan = request.Plan.Plan;
        var row = new ResultRow
        {
            Algorithm = plan.Algorithm.Name(),
            Reduction = plan.Algorithm == AttentionAlgorithm.Tree ? step.Reduction.Name() : null,
            Transport = group.Context.Transport.Name,
            Device = group.Context.Device.Name,
            Dtype = inputs.StorageType.ShortName(),
            Ranks = group.Size,
            Cost = outcome.Cost,
            Verification = outcome.Verification,
        };
        TextWriter console = Terminal.Out;
        AttentionShape shape = inputs.Shape;
        string reduction = row.Reduction is null ? "" : $" ({row.Reduction})";
        double tokensPerSecond = shape.Batch * request.QueryLength * inputs.Steps / (outcome.Cost.RunsUs.Sum() * 1e-6);
        console.WriteLine($"# {group.Description}; {group.Context.Device.Description}");
        console.WriteLine(
            $"# batch {shape.Batch}, context {inputs.Context} to {shape.KeyLength}, {request.QueryLength} tokens a step x {shape.QueryHeads} heads, {shape.KvHeads} KV heads, "
            + $"dim {shape.HeadDim}/{shape.ValueDim}, {request.Layers} layers, {row.Dtype}; cache {cache.Bytes} bytes on rank 0");
        if (outcome.Prefill is { } prefill)
        {
            console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"prefill {request.Prefill!.Value.Name()}: {inputs.Context} tokens of {shape.Batch} rows in {prefill.Microseconds:F1} us, "
                + $"{PrefillTokensPerSecond(inputs, prefill) ?? 0:F1} tokens/s; sent {prefill.Sent.Bytes} bytes, {prefill.Sent.Messages} messages, "
                + $"{prefill.Sent.Collectives} collectives"));
        }

        console.WriteLine(string.Create(
            CultureInfo.InvariantCulture,
            $"{row.Algorithm}{reduction}: {inputs.Steps} steps, median {outcome.Cost.MedianUs:F1} us (compute {outcome.Cost.ComputeUs:F1}, communication "
            + $"{outcome.Cost.CommunicationUs:F1}), {tokensPerSecond:F1} tokens/s; sent {outcome.Cost.BytesSent} bytes, {outcome.Cost.Messages} messages, "
            + $"{outcome.Cost.Collectives} collectives a step; peak {outcome.Cost.PeakBytes} bytes"));
        if (outcome.Verification is { } verification)
        {
            console.WriteLine(string.Create(
                CultureInfo.InvariantCulture,
                $"verified {verification.Rows} rows {(outcome.Prefill is null ? "of" : "of the context and")} sampled steps against float64: largest error {verification.ErrorMax:E2}, bound {verification.ErrorBound:E2}, "
                + $"{verification.Wrong} wrong"));
            if (verification.Wrong > 0)
            {
                Terminal.Error.WriteLine($"treeattn: {verification.Wrong} of {verification.Rows} rows lie outside the bound; the worst is {verification.WorstRow}.");
            }
        }

        if (request.Json)
        {
            console.WriteLine(ToJson(request, inputs, cache, outcome, row, tokensPerSecond));
        }

        console.Flush();
    }

    private static string ToJson(
        DecodeRequest request, DecodeInputs inputs, ShardedKvCache cache, DecodeOutcome outcome, ResultRow row, double tokensPerSecond) => ResultRow.Line(json =>
    {
        AttentionShape shape = inputs.Shape;
        double[] runs = outcome.Cost.RunsUs;
        int part = (runs.Length + Parts - 1) / Parts;
        row.WriteMembers(json);
        json.WriteNumber("batch", shape.Batch);
        json.WriteNumber("query_len", request.QueryLength);
        json.WriteNumber("context", inputs.Context);
        json.WriteNumber("final_context", shape.KeyLength);
        json.WriteNumber("steps", inputs.Steps);
        json.WriteNumber("layers", request.Layers);
        json.WriteNumber("heads", shape.QueryHeads);
        json.WriteNumber("kv_heads", shape.KvHeads);
        json.WriteNumber("head_dim", shape.HeadDim);
        json.WriteNumber("value_dim", shape.ValueDim);
        ResultRow.WriteNumber(json, "tokens_per_s", tokensPerSecond);
        ResultRow.WriteNumber(json, "first_us", RunRecorder.Quantile(runs.Take(part), 0.5));
        ResultRow.WriteNumber(json, "last_us", RunRecorder.Quantile(runs.TakeLast(part), 0.5));
        json.WriteStartArray("tenths_us");
        foreach (double[] tenth in runs.Chunk(part))
        {
            json.WriteNumberValue(RunRecorder.Quantile(tenth, 0.5));
        }

        json.WriteEndArray();
        json.WriteNumber("cache_bytes", cache.Bytes);
        json.WriteNumber("allocated_bytes", outcome.AllocatedBytes);
        PrefillOutcome? prefill = outcome.Prefill;
        json.WriteString("prefill", request.Prefill?.Name());
        ResultRow.WriteNumber(json, "chunk", request.Prefill == PrefillMethod.Chunked ? request.Chunk : null);
        ResultRow.WriteNumber(json, "prefill_us", prefill?.Microseconds);
        ResultRow.WriteNumber(json, "prefill_tokens_per_s", prefill is null ? null : PrefillTokensPerSecond(inputs, prefill));
        ResultRow.WriteNumber(json, "prefill_bytes_sent", prefill?.Sent.Bytes);
        ResultRow.WriteNumber(json, "prefill_messages", prefill?.Sent.Messages);
        ResultRow.WriteNumber(json, "prefill_collectives", prefill?.Sent.Collectives);
    });

    private static double? PrefillTokensPerSecond(DecodeInputs inputs, PrefillOutcome prefill) =>
        prefill.Microseconds > 0 ? (double)inputs.Shape.Batch * inputs.Context / (prefill.Microseconds * 1e-6) : null;
}
