using System;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

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
    private readonly float[] _output;
    private readonly float[] _lse;
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
        _output = new float[rows * shape.QueryHeads * shape.ValueDim];
        _lse = new float[rows * shape.QueryHeads];
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
                VerificationReport? report = _group.Together(() => reference?.Check(_step.Problem, step, _output, _lse));
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
            _step.Attend(0, _query, _output, _lse);
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
            _step.Run(layer, _query, _key, _value, _output, _lse);
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
        int all = _inputs.Results.QueryLength;
        int first = _inputs.FirstQuery + (step * shape.QueryLength);
        int floats = shape.QueryHeads * shape.ValueDim;
        for (int row = 0; row < shape.Batch; row++)
        {
            _output.AsSpan(row * shape.QueryLength * floats, shape.QueryLength * floats).CopyTo(result.Output.AsSpan(((row * all) + first) * floats));
        }

        for (int line = 0; line < shape.Batch * shape.QueryHeads; line++)
        {
            _lse.AsSpan(line * shape.QueryLength, shape.QueryLength)
                .CopyTo(result.Lse.AsSpan((line * all) + first));
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
