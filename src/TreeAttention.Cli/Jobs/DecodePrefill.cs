using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The prefill of a decode: reads each rank's tokens of the context, takes them into the cache under the clock, keeps or checks what their queries got.</summary>
/// <remarks>Ring and gather take the context whole, each rank its share; chunked takes a chunk after the other, so that no rank holds more than one.</remarks>
internal sealed class DecodePrefill(
    DecodeRequest request, PrefillMethod method, AttentionGroup group, DecodeInputs inputs, ShardedKvCache cache, AttentionProblem steps, ITokenSource tokens)
{
    private readonly ITokenSource _queries = inputs.QueriesFor(cache.Options);
    private readonly RunRecorder _recorder = new(group);
    private TrafficCount _sent;

    /// <summary>Takes the whole context into all layers. Every rank calls it.</summary>
    /// <param name="result">On rank 0 receives the outputs of the context, before those of the steps; null where nobody wants them.</param>
    /// <param name="reference">On rank 0 what they are held against; null where nobody asked.</param>
    public PrefillOutcome Run(AttentionResult? result, DecodeReference? reference)
    {
        PromptResults results = group.Together(() => new PromptResults(group, inputs, request, result));
        int pass = method == PrefillMethod.Chunked ? request.Chunk : Math.Max(1, inputs.Context);
        using (var progress = new ProgressLine(group.IsRoot, Math.Max(1, inputs.Context), "tokens"))
        {
            foreach (IGrouping<int, int> passes in Enumerable.Range(0, (int)(((long)inputs.Context + pass - 1) / pass))
                .GroupBy(index => Math.Min(pass, inputs.Context - (index * pass))))
            {
                using PrefillStep step = group.Together(() => PrefillStep.Create(group.Context, cache, OptionsFor(passes.Key)));
                foreach (int index in passes)
                {
                    RunPass(step, index * pass, results);
                    progress.Show((index * pass) + passes.Key);
                }
            }
        }

        VerificationReport? verification = group.Together(() => reference is null || inputs.Context == 0 ? null : results.Check(reference, steps));
        verification = verification?.WorstRow is null ? verification : verification with { WorstRow = $"prefill, {verification.WorstRow}" };
        long[][] sent = group.Gather(_sent.Bytes, _sent.Messages, _sent.Collectives);
        return new PrefillOutcome(
            inputs.Context == 0 ? 0 : _recorder.Summarise().RunsUs.Sum(),
            new TrafficCount(sent.Max(rank => rank[0]), sent.Max(rank => rank[1]), sent.Max(rank => rank[2])), verification);
    }

    private PrefillOptions OptionsFor(int length) => new()
    {
        Method = method,
        Lengths = [.. Enumerable.Repeat(length, inputs.Shape.Batch)],
        QueryHeads = inputs.Shape.QueryHeads,
        Attention = steps.Options with { KeyLengths = null },
        Chunk = request.Chunk,
        Plan = request.Plan.Plan,
    };

    private void RunPass(PrefillStep step, int first, PromptResults results)
    {
        AttentionShape shape = inputs.Shape;
        (float[] query, float[] key, float[] value) = group.Together(() => Read(step.Tokens, first));
        (float[] output, float[] lse) = group.Together(() => (
            new float[(long)step.Tokens.Count * shape.QueryHeads * shape.ValueDim], new float[(long)step.Tokens.Count * shape.QueryHeads]));
        (long compute, long communication) = (0, 0);
        long start = _recorder.Begin();
        for (int layer = 0; layer < cache.Options.Layers; layer++)
        {
            step.Run(layer, query, key, value, output, lse);
            compute += step.Times.ComputeTicks;
            communication += step.Times.CommunicationTicks;
        }

        long total = Stopwatch.GetTimestamp() - start;
        TrafficCount sent = group.Context.Transport.Traffic.Count; // the recorder began from nothing
        _sent = new TrafficCount(_sent.Bytes + sent.Bytes, _sent.Messages + sent.Messages, _sent.Collectives + sent.Collectives);
        _recorder.End(total, compute, communication);
        results.Take(step, first, output, lse);
    }

    private (float[] Query, float[] Key, float[] Value) Read(IReadOnlyList<PromptToken> mine, int first)
    {
        AttentionShape shape = inputs.Shape;
        (int queries, int keys, int values) = (
            shape.QueryHeads * shape.HeadDim, shape.KvHeads * shape.HeadDim, inputs.ValuesInKeys ? 0 : shape.KvHeads * shape.ValueDim);
        float[] query = new float[(long)mine.Count * queries];
        float[] key = new float[(long)mine.Count * keys];
        float[] value = new float[(long)mine.Count * values];
        for (int i = 0; i < mine.Count; i++)
        {
            _queries.Read(mine[i].Row, first + mine[i].Index, query.AsSpan(i * queries, queries), []);
            tokens.Read(mine[i].Row, first + mine[i].Index, key.AsSpan(i * keys, keys), value.AsSpan(i * values, values));
        }

        return (query, key, value);
    }
}
