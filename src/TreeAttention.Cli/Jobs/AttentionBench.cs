using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>All plans over one context: every plan is checked once, then all run in each round, forth and back in turn.</summary>
internal sealed class AttentionBench : IDisposable
{
    private readonly BenchRequest _request;
    private readonly AttentionGroup _group;
    private readonly IBenchInputs _inputs;
    private readonly AttentionProblem _problem;
    private readonly ShardedCall _call;
    private readonly List<Entry> _entries = [];
    private readonly CeilingRecorder? _ceiling;
    private readonly RingModel? _ring;

    /// <summary>Loads the inputs and prepares every plan.</summary>
    public AttentionBench(BenchRequest request, AttentionGroup group, IBenchInputs inputs)
    {
        _request = request;
        _group = group;
        _inputs = inputs;
        _problem = group.Together(() => new AttentionProblem(inputs.Shape, request.Semantics.Flags()));
        IDevice device = group.Context.Device;
        _call = new ShardedCall(
            group, _problem, request.Plan, inputs.StorageType, inputs.ValuesInKeys,
            plan => inputs.LoadShard(device, plan), indices => inputs.LoadQueries(device, indices), inputs.Scales);
        foreach (AttentionPlan plan in Plans())
        {
            long before = device.Memory.Bytes;
            AttentionStep step = group.Together(() => _call.CreateStep(plan));
            long alone = _call.Shard.Contents.Bytes + _call.Queries.Values.Bytes + device.Memory.Bytes - before;
            _entries.Add(new Entry(plan, step, new StepRecorder(group, step, _call.Queries, _call.Shard), alone));
        }

        _ceiling = request.Ceiling ? new CeilingRecorder(group, inputs.StorageType) : null;
        _ring = request.Ceiling && group.Size > 1 && _entries.Exists(entry => RotatesKeys(entry.Plan)) ? new RingModel(group, _call) : null;
    }

    /// <summary>Checks, warms up, times. Every rank calls it; the rows mean something on rank 0.</summary>
    public IReadOnlyList<BenchRow> Run()
    {
        Func<AttentionResult, VerificationReport>? check = _request.Check
            ? _group.Together(() => _group.IsRoot ? _inputs.PrepareCheck(_problem) : null)
            : null;
        foreach (Entry entry in _entries)
        {
            Check(entry, check);
        }

        for (int round = -_request.Warmup; round < _request.Iterations; round++)
        {
            RunRound(round);
        }

        CeilingMeasurement? ceiling = _ceiling?.Summarise();
        var costs = _entries.ToDictionary(entry => entry, entry => entry.Recorder.Summarise());
        double? ringUs = PredictRing(costs);
        return [.. _entries.Select(entry => RowOf(entry, costs[entry], ceiling, RotatesKeys(entry.Plan) ? ringUs : null))];
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (Entry entry in _entries)
        {
            entry.Step.Dispose();
        }

        _ceiling?.Dispose();
        _ring?.Dispose();
        _call.Dispose();
    }

    private IEnumerable<AttentionPlan> Plans() => _request.Plan.Chosen || _request.Plan.Reproducible
        ? [_request.Plan.Plan]
        : Contestants.Plans(_group, _request.Plan.Plan.Placement);

    private void Check(Entry entry, Func<AttentionResult, VerificationReport>? check)
    {
        PartialAttention state = entry.Recorder.WarmUp();
        if (!_request.Check)
        {
            return;
        }

        AttentionResult? result = _group.Together(() => ResultGatherer.Gather(_group, _call, state));
        entry.Report = _group.Together(() => result is null ? null : check!(result));
    }

    private void RunRound(int round)
    {
        IEnumerable<Entry> order = round % 2 == 0 ? _entries : _entries.AsEnumerable().Reverse();
        foreach (Entry entry in order)
        {
            if (round < 0)
            {
                entry.Recorder.WarmUp();
            }
            else
            {
                entry.Recorder.Run();
            }
        }

        if (round >= 0)
        {
            _ceiling?.Run();
            _ring?.Run();
        }
    }

    private static bool RotatesKeys(AttentionPlan plan) => plan.Algorithm is AttentionAlgorithm.Ring or AttentionAlgorithm.RingNoOverlap;

    // A tree attends to each shard once; a ring, where it runs alone, to as many as there are ranks.
    private double? PredictRing(Dictionary<Entry, StepMeasurement> costs)
    {
        if (_ring is null)
        {
            return null;
        }

        double exchangeUs = _ring.Summarise().MedianUs;
        Entry? tree = _entries.Find(entry => entry.Plan.Algorithm == AttentionAlgorithm.Tree);
        double computeUs = tree is not null ? costs[tree].ComputeUs
            : costs.First(pair => RotatesKeys(pair.Key.Plan)).Value.ComputeUs / _group.Size;
        return _ring.PredictUs(computeUs, exchangeUs);
    }

    private BenchRow RowOf(Entry entry, StepMeasurement cost, CeilingMeasurement? ceiling, double? modelUs)
    {
        cost = cost with { PeakBytes = _group.Gather(entry.Bytes).Max(rank => rank[0]) };
        var result = new ResultRow
        {
            Algorithm = entry.Plan.Algorithm.Name(),
            Reduction = entry.Plan.Algorithm == AttentionAlgorithm.Tree ? entry.Step.Reduction.Name() : null,
            Transport = _group.Context.Transport.Name,
            Device = _group.Context.Device.Name,
            Dtype = _inputs.StorageType.ShortName(),
            Ranks = _group.Size,
            Cost = cost,
            Verification = entry.Report,
        };
        double bytes = UsefulWork.BytesRead(_inputs.Shape, _inputs.StorageType, _inputs.ValuesInKeys);
        return new BenchRow(
            result, _inputs.Shape, _group.Nodes.Distinct().Count(),
            ceiling?.ReadRatio(cost, bytes),
            ceiling?.CopyRatio(cost, bytes),
            ceiling?.FmaRatio(cost, UsefulWork.Operations(_problem)),
            ceiling,
            modelUs);
    }

    private sealed class Entry(AttentionPlan plan, AttentionStep step, StepRecorder recorder, long bytes)
    {
        public AttentionPlan Plan { get; } = plan;

        public AttentionStep Step { get; } = step;

        public StepRecorder Recorder { get; } = recorder;

        /// <summary>Device memory of this rank, had it run this plan alone.</summary>
        public long Bytes { get; } = bytes;

        public VerificationReport? Report { get; set; }
    }
}
