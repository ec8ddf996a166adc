using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Decode;

/// <summary>The steps of a decode: reads each step's tokens and queries, runs it under the clock, keeps or checks its result.</summary>
internal sealed class DecodeRun
{
    // First, last and steps between them: each costs a pass over all keys in float64.
    private const int CheckedSteps = 4;

    private readonly DecodeRequest _request;
    private readonly AttentionGroup _group;
    private readonly DecodeInputs _inputs;
    private readonly ShardedKvCache _cache;
    private readonly DecodeStep _step;
    private readonly ITokenSource _tokens;
    private readonly ITokenSource _queries;
    private readonly float[] _query;
    private readonly float[] _key;
    private readonly float[] _value;
    private readonly AttentionResult _result; // of one step
    private long _allocated;

    public DecodeRun(
        DecodeRequest request, AttentionGroup group, DecodeInputs inputs, ShardedKvCache cache, DecodeStep step, ITokenSource tokens)
    {
        (_request, _group, _inputs, _cache, _step, _tokens) = (request, group, inputs, cache, step, tokens);
        _queries = inputs.QueriesFor(cache.Options);
        AttentionShape shape = step.Problem.Shape;
        int rows = shape.Batch * shape.QueryLength;
        _query = new float[rows * shape.QueryHeads * shape.HeadDim];
        _key = new float[rows * shape.KvHeads * shape.HeadDim];
        _value = new float[inputs.ValuesInKeys ? 0 : rows * shape.KvHeads * shape.ValueDim];
        _result = AttentionResult.Of(shape);
    }

    /// <summary>Runs all steps. Every rank calls it.</summary>
    /// <param name="result">On rank 0 receives the outputs; null where nobody wants them.</param>
    /// <param name="reference">On rank 0 what sampled steps are held against; null where nobody asked.</param>
    /// <param name="prefill">What the context cost, which the outcome tells too.</param>
    public DecodeOutcome Run(AttentionResult? result, DecodeReference? reference, PrefillOutcome? prefill)
    {
        using var progress = new ProgressLine(_group.IsRoot, _inputs.Steps);
        VerificationReport? verification = prefill?.Verification;
        WarmUp();
        var recorder = new RunRecorder(_group);
        for (int step = 0; step < _inputs.Steps; step++)
        {
            Read(step);
            RunStep(recorder);
            Keep(result, step);
            if (IsChecked(step))
            {
                VerificationReport? report = _group.Together(() => reference?.Check(_step.Problem, step, _result));
                verification = Together(verification, report, $"step {step}");
            }

            progress.Show(step + 1);
        }

        StepMeasurement cost = recorder.Summarise();
        return new DecodeOutcome(cost, prefill, _group.Gather(_allocated).Max(rank => rank[0]), result, verification);
    }

    private void WarmUp()
    {
        if (_request.Warmup > 0)
        {
            Read(0);
        }

        for (int run = 0; run < _request.Warmup; run++)
        {
            _group.Attend(_step, 0, _query, _result.Output, _result.Lse);
        }
    }

    private void Read(int step)
    {
        AttentionShape shape = _step.Problem.Shape;
        int queryFloats = shape.QueryHeads * shape.HeadDim;
        int keyFloats = shape.KvHeads * shape.HeadDim;
        int valueFloats = _inputs.ValuesInKeys ? 0 : shape.KvHeads * shape.ValueDim;
        _group.Together(() =>
        {
            for (int i = 0; i < shape.Batch * shape.QueryLength; i++)
            {
                (int row, int token) = Math.DivRem(i, shape.QueryLength);
                int place = (step * shape.QueryLength) + token;
                _queries.Read(row, _inputs.FirstQuery + place, _query.AsSpan(i * queryFloats, queryFloats), []);
                _tokens.Read(
                    row, _inputs.Context + place, _key.AsSpan(i * keyFloats, keyFloats), _value.AsSpan(i * valueFloats, valueFloats));
            }
        });
    }

    private void RunStep(RunRecorder recorder)
    {
        (long compute, long communication) = (0, 0);
        long start = recorder.Begin();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int layer = 0; layer < _cache.Options.Layers; layer++)
        {
            _group.Decode(_step, layer, _query, _key, _value, _result.Output, _result.Lse);
            compute += _step.Times.ComputeTicks;
            communication += _step.Times.CommunicationTicks;
        }

        long total = Stopwatch.GetTimestamp() - start;
        _allocated += GC.GetAllocatedBytesForCurrentThread() - before;
        recorder.End(total, compute, communication);
    }

    private void Keep(AttentionResult? result, int step)
    {
        if (result is null)
        {
            return;
        }

        AttentionShape shape = _step.Problem.Shape;
        int first = _inputs.FirstQuery + (step * shape.QueryLength);
        for (int i = 0; i < shape.Batch * shape.QueryLength; i++)
        {
            (int row, int token) = Math.DivRem(i, shape.QueryLength);
            result.Put(row, first + token, _result, row, token);
        }
    }

    private bool IsChecked(int step)
    {
        int last = _inputs.Steps - 1;
        return _request.Verify && Enumerable.Range(0, CheckedSteps).Any(i => (long)last * i / (CheckedSteps - 1) == step);
    }

    // The worst step is the one whose error is the largest part of its bound.
    private static VerificationReport? Together(VerificationReport? before, VerificationReport? report, string where)
    {
        if (report is null)
        {
            return before;
        }

        report = report with { WorstRow = report.WorstRow is null ? null : $"{where}, {report.WorstRow}" };
        if (before is null)
        {
            return report;
        }

        VerificationReport worst = report.ErrorMax * before.ErrorBound > before.ErrorMax * report.ErrorBound ? report : before;
        return worst with { Wrong = before.Wrong + report.Wrong, Rows = before.Rows + report.Rows };
    }
}

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
        AttentionResult got = group.Together(() => new AttentionResult(1, step.Tokens.Count, shape.QueryHeads, shape.ValueDim));
        (long compute, long communication) = (0, 0);
        long start = _recorder.Begin();
        for (int layer = 0; layer < cache.Options.Layers; layer++)
        {
            group.Prefill(step, layer, query, key, value, got.Output, got.Lse);
            compute += step.Times.ComputeTicks;
            communication += step.Times.CommunicationTicks;
        }

        long total = Stopwatch.GetTimestamp() - start;
        TrafficCount sent = group.Context.Transport.Traffic.Count; // the recorder began from nothing
        _sent = new TrafficCount(_sent.Bytes + sent.Bytes, _sent.Messages + sent.Messages, _sent.Collectives + sent.Collectives);
        _recorder.End(total, compute, communication);
        results.Take(step, first, got);
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
