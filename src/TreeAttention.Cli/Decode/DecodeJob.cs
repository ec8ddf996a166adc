using System.Collections.Generic;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Decode;

/// <summary>One rank's part of <c>treeattn decode</c>: fill the cache, then append, attend and reduce, step after step.</summary>
internal sealed class DecodeJob(DecodeRequest request, AttentionGroup group)
{
    /// <summary>Does the work; every rank returns the same code.</summary>
    public FaultCode Run()
    {
        RunSettings.Begin(group, "decode");
        AutoScales.Begin(group, request.Tensors?.Scales ?? request.Scales);
        group.Together(() => OutputPaths.RequireOwn(request.Tensors, request.Semantics, request.Output, request.Lse));
        using DecodeInputs inputs = group.Together(() => new DecodeInputs(request));
        inputs.SettleScales(group, request);
        AttentionShape whole = inputs.Shape;
        AttentionOptions options = group.Together(() => SemanticsReader.Read(request.Semantics, whole, request.NonFinite));
        group.Agree(Settings(inputs, options));
        using OutputFiles outputs = group.Together(() => new OutputFiles(
            group.IsRoot ? request.Output : null, group.IsRoot ? request.Lse : null, request.Force));
        using ShardedKvCache cache = group.Together(() => new ShardedKvCache(group.Context, CacheOptionsFor(inputs)));
        using DecodeStep step = group.Together(() => new DecodeStep(group.Context, cache, new DecodeOptions
        {
            QueryLength = request.QueryLength,
            QueryHeads = whole.QueryHeads,
            Attention = options,
            Plan = request.Plan.Plan,
        }));
        ITokenSource tokens = inputs.TokensFor(cache.Options);
        bool keeps = group.IsRoot && (request.Output is not null || request.Lse is not null);
        AttentionResult? result = group.Together(() => keeps ? AttentionResult.Of(inputs.Results) : null);
        using DecodeReference? reference = group.Together(() => group.IsRoot && request.Verify
            ? inputs.OpenReference(request.Rotary, request.QueryLength)
            : null);
        PrefillOutcome? prefill = FillContext(inputs, cache, step.Problem, tokens, result, reference);
        DecodeRun run = group.Together(() => new DecodeRun(request, group, inputs, cache, step, tokens));
        DecodeOutcome outcome = run.Run(result, reference, prefill);
        group.Together(() => outputs.Write(inputs.Results, outcome.Result, request.Tensors?.HeadMajor ?? false));
        long wrong = group.Gather(outcome.Verification?.Wrong ?? 0)[0][0];
        if (group.IsRoot)
        {
            DecodeReport.Print(request, group, inputs, cache, step, outcome);
        }

        return wrong == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    private CacheOptions CacheOptionsFor(DecodeInputs inputs) => new()
    {
        Layers = request.Layers,
        Rows = inputs.Shape.Batch,
        KvHeads = inputs.Shape.KvHeads,
        HeadDim = inputs.Shape.HeadDim,
        ValueDim = inputs.Shape.ValueDim,
        ValuesInKeys = inputs.ValuesInKeys,
        Type = inputs.StorageType,
        Scales = inputs.Scales,
        MaxLength = inputs.Shape.KeyLength,
        MemoryBytes = request.CacheMemory?.Bytes,
        MemoryFraction = request.CacheMemory?.Fraction,
        Rotary = request.Rotary,
        NonFinite = request.NonFinite,
        Replicated = request.Plan.Plan.Algorithm == AttentionAlgorithm.Single,
    };

    private PrefillOutcome? FillContext(
        DecodeInputs inputs, ShardedKvCache cache, AttentionProblem steps, ITokenSource tokens, AttentionResult? result, DecodeReference? reference)
    {
        if (request.Prefill is { } method)
        {
            return new DecodePrefill(request, method, group, inputs, cache, steps, tokens).Run(result, reference);
        }

        group.Together(() => Fill(cache, tokens, inputs.Context));
        cache.ShareLimits();
        return null;
    }

    private static void Fill(ShardedKvCache cache, ITokenSource tokens, int context)
    {
        for (int layer = 0; layer < cache.Options.Layers; layer++)
        {
            for (int row = 0; row < cache.Options.Rows; row++)
            {
                cache.AppendShard(layer, row, context, tokens);
            }
        }
    }

    private List<KeyValuePair<string, string>> Settings(DecodeInputs inputs, AttentionOptions options) =>
    [
        new("sizes", inputs.Shape.ToString()),
        new("--context --steps --query-len", $"{inputs.Context} {inputs.Steps} {request.QueryLength}"),
        new("--prefill --chunk", $"{request.Prefill?.Name() ?? "none"} {request.Chunk}"),
        new("--layers", RunSettings.Text(request.Layers)),
        new("--cache-memory", request.CacheMemory?.ToString() ?? "all"),
        new("--dtype", inputs.StorageType.ShortName()),
        .. RunSettings.Of(inputs.Scales),
        new("--rotary", request.Rotary?.ToString() ?? "none"),
        new("--nan", request.NonFinite.ToString()),
        .. RunSettings.Of(request.Plan),
        .. RunSettings.Of(options),
        new("--warmup", RunSettings.Text(request.Warmup)),
        new("--verify", RunSettings.Text(request.Verify)),
        .. inputs.Settings,
    ];
}

/// <summary>What the steps gave and what they cost.</summary>
/// <param name="Cost">The steps' cost; the same on every rank.</param>
/// <param name="Prefill">What the context cost; null where it was only stored.</param>
/// <param name="AllocatedBytes">Managed bytes that the steps allocated on the rank that allocated most.</param>
/// <param name="Result">Outputs of all steps, behind those of a prefilled context, on rank 0; null elsewhere, and where nobody asked for them.</param>
/// <param name="Verification">The sampled steps and the context together; null on other ranks, and where nobody asked.</param>
internal sealed record DecodeOutcome(
    StepMeasurement Cost, PrefillOutcome? Prefill, long AllocatedBytes, AttentionResult? Result, VerificationReport? Verification);

/// <summary>What it cost to take the context into the cache and to attend to it, over all layers.</summary>
/// <param name="Microseconds">From barriers to the slowest rank; reading the inputs is not counted.</param>
/// <param name="Sent">What the busiest rank handed to the transport.</param>
/// <param name="Verification">Sampled rows; null on other ranks than 0, and where nobody asked.</param>
internal sealed record PrefillOutcome(double Microseconds, TrafficCount Sent, VerificationReport? Verification);
