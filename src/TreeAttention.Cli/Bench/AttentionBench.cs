using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using TreeAttention.Cli.Arguments;
using TreeAttention.Cli.Output;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;
using TreeAttention.Runtime.Groups;
using TreeAttention.Runtime.Measurement;
using TreeAttention.Verification;

namespace TreeAttention.Cli.Bench;

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
        _problem = group.Together(() => new AttentionProblem(inputs.Shape, request.Semantics.Flags));
        IDevice device = group.Context.Device;
        _call = new ShardedCall(
            group, _problem, request.Plan.Plan, request.Plan.Layout, inputs.StorageType, inputs.ValuesInKeys,
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
        : ComparedPlans.Plans(_group, _request.Plan.Plan.Placement);

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

/// <summary>The work that a call cannot do without, whatever the algorithm: what rates and ratios are counted with.</summary>
internal static class UsefulWork
{
    /// <summary>Bytes of all keys and values, each read once.</summary>
    public static double BytesRead(AttentionShape shape, ElementType type, bool valuesInKeys) =>
        (double)shape.Batch * shape.KeyLength * shape.KvHeads * (shape.HeadDim + (valuesInKeys ? 0 : shape.ValueDim)) * type.Entry().BitsPerElement / 8;

    /// <summary>Multiplications and additions of q·k and p·v over the pairs that the masks' intervals keep.</summary>
    public static double Operations(AttentionProblem problem)
    {
        double pairs = 0;
        for (int batch = 0; batch < problem.Shape.Batch; batch++)
        {
            for (int i = 0; i < problem.Shape.QueryLength; i++)
            {
                KeyInterval visible = problem.Mask.Visible(batch, i);
                pairs += visible.IsEmpty ? 0 : visible.End - visible.First;
            }
        }

        return 2.0 * (problem.Shape.HeadDim + problem.Shape.ValueDim) * problem.Shape.QueryHeads * pairs;
    }
}

/// <summary>The cost model of a ring that rotates keys and values, T = p·c + (p-1)·V/b, with c and V/b measured in the same rounds.</summary>
/// <remarks>c is the slowest rank's attention to one shard, V/b the bare exchange of a shard with the neighbours. On CPUs copies take the cores that compute, so overlap hides nothing.</remarks>
internal sealed class RingModel : IDisposable
{
    private readonly AttentionGroup _group;
    private readonly Ring _ring;
    private readonly Region _outgoing;
    private readonly Region _buffer;
    private readonly Region _incoming;
    private readonly RunRecorder _exchanges;

    /// <summary>Allocates what the exchange receives into.</summary>
    public RingModel(AttentionGroup group, ShardedCall call)
    {
        _group = group;
        _ring = new Ring(group.Rank, group.Size);
        _outgoing = call.Shard.Contents;
        _exchanges = new RunRecorder(group);
        IDevice device = group.Context.Device;
        _buffer = device.Allocate(call.Shard.Plan.Type.BytesFor(call.Shards.LargestElements), call.Shard.Plan.Type);
        _incoming = _buffer.Slice(0, call.Shards.PlanOf(_ring.Previous).Elements);
    }

    /// <summary>Exchanges the shard with the neighbours once.</summary>
    public void Run()
    {
        long start = _exchanges.Begin();
        _group.Context.Transport.Exchange(_outgoing, _ring.Next, _incoming, _ring.Previous);
        long ticks = Stopwatch.GetTimestamp() - start;
        _exchanges.End(ticks, 0, ticks);
    }

    /// <summary>What the bare exchanges cost. Every rank calls it.</summary>
    public StepMeasurement Summarise() => _exchanges.Summarise();

    /// <summary>Microseconds of a ring step by the model.</summary>
    /// <param name="computeUs">c: the slowest rank's attention to one shard.</param>
    /// <param name="exchangeUs">V/b: a bare exchange.</param>
    public double PredictUs(double computeUs, double exchangeUs) => (_group.Size * computeUs) + ((_group.Size - 1) * exchangeUs);

    /// <inheritdoc/>
    public void Dispose() => _group.Context.Device.Free(_buffer);
}
