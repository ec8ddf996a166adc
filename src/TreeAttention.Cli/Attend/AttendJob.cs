using System.Collections.Generic;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Attend;

/// <summary>One rank's part of <c>treeattn attend</c>: read, lay out, attend, gather, verify, write, report.</summary>
internal sealed class AttendJob(AttendRequest request, AttentionGroup group)
{
    /// <summary>Does the work; every rank returns the same code.</summary>
    public FaultCode Run()
    {
        Begin();
        using InputTensors inputs = group.Together(() => new InputTensors(request.Tensors, request.Semantics.IsPacked));
        AttentionOptions options = group.Together(() =>
            SemanticsReader.Read(request.Semantics, inputs.Shape, request.Tensors.NonFinite));
        AttentionProblem problem = group.Together(() => new AttentionProblem(inputs.Shape, options));
        inputs.SettleScales(group, present: problem.Present);
        group.Agree(Settings(inputs, options));
        using OutputFiles outputs = group.Together(() => new OutputFiles(
            group.IsRoot ? request.Output : null, group.IsRoot ? request.Lse : null, request.Force));
        using ShardedCall call = LayOut(problem, inputs);
        using AttentionStep step = group.Together(() => call.CreateStep(request.Plan.Plan));
        var recorder = new StepRecorder(group, step, call.Queries, call.Shard);
        for (int run = 0; run < request.Warmup; run++)
        {
            recorder.WarmUp();
        }

        PartialAttention state = recorder.Run();
        for (int run = 1; run < request.Repeat; run++)
        {
            state = recorder.Run();
        }

        StepMeasurement cost = recorder.Summarise();
        AttentionResult? result = group.Together(() => ResultGatherer.Gather(group, call, state));
        VerificationReport? verification = group.Together(() => Verify(problem, inputs, result));
        group.Together(() => outputs.Write(problem.Shape, result, request.Tensors.HeadMajor, inputs.HasBatchAxis, request.Semantics.IsPacked));
        long wrong = group.Gather(verification?.Wrong ?? 0)[0][0];
        if (group.IsRoot)
        {
            AttendReport.Print(request, group, call, step, cost, verification);
        }

        return wrong == 0 ? FaultCode.None : FaultCode.OutsideTolerance;
    }

    private void Begin()
    {
        RunSettings.Begin(group, "attend");
        AutoScales.Begin(group, request.Tensors.Scales);
        group.Together(() => OutputPaths.RequireOwn(request.Tensors, request.Semantics, request.Output, request.Lse));
    }

    private ShardedCall LayOut(AttentionProblem problem, InputTensors inputs) => new(
        group, problem, request.Plan.Plan, request.Plan.Layout, inputs.StorageType, request.Tensors.ValueFromKey is not null,
        plan => KeyValueLoader.Load(group.Context.Device, plan, inputs.Key, inputs.Value, request.Tensors.NonFinite),
        indices => QueryLoader.Load(group.Context.Device, inputs.Shape, inputs.Query, indices, request.Tensors.NonFinite, problem.Present),
        inputs.Scales);

    private VerificationReport? Verify(AttentionProblem problem, InputTensors inputs, AttentionResult? result) =>
        request.Verify && result is not null
            ? Agreement.Check(
                new ReferenceCall(
                    problem.Shape, problem.Options, inputs.Query, inputs.Key, inputs.Value, inputs.StorageType, inputs.Scales),
                result.Output, result.Lse, Seeds.Default)
            : null;

    private List<KeyValuePair<string, string>> Settings(InputTensors inputs, AttentionOptions options) =>
    [
        .. inputs.Settings,
        new("--layout", request.Tensors.HeadMajor ? "bhsd" : "bshd"),
        new("--dtype", inputs.StorageType.ShortName()),
        .. RunSettings.Of(inputs.Scales),
        new("--nan", request.Tensors.NonFinite.ToString()),
        .. RunSettings.Of(request.Plan),
        .. RunSettings.Of(options),
        new("--repeat", RunSettings.Text(request.Repeat)),
        new("--warmup", RunSettings.Text(request.Warmup)),
        new("--verify", RunSettings.Text(request.Verify)),
        new("--lse", RunSettings.Text(request.Lse is not null)),
    ];
}
