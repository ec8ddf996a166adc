using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Steps;

/// <summary>One attention call over the keys of all ranks, made once for given sizes and run many times.</summary>
/// <remarks>Everything is allocated when it is made, through the rank's device; a run allocates nothing.</remarks>
internal abstract class AttentionStep : IDisposable
{
    private readonly List<Region> _memory = [];
    private readonly StepClock _clock;
    private readonly StepReplay? _replay;

    private protected AttentionStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
    {
        Context = context;
        Problem = problem;
        Shards = shards;
        QueryCount = queryCount;
        _clock = StepClock.For(context.Device);
        _replay = context.Device is IStreamDevice device ? new StepReplay(device, this, RunDirectly) : null;
    }

    /// <summary>Where the time of the last run went.</summary>
    public StepTimes Times { get; private set; }

    /// <summary>The reduction that folds the states; <see cref="ReductionKind.Auto"/> where the algorithm has none (single, rings, gather).</summary>
    public virtual ReductionKind Reduction => ReductionKind.Auto;

    /// <summary>A run can be captured: nothing in it waits or talks to the host. The same on every rank.</summary>
    internal virtual bool IsCapturable => Transport.Size == 1 || Transport.IsCapturable;

    /// <summary>What a captured run took from the host beside its memory: where it changes, and on every rank alike, the run is captured anew.</summary>
    internal virtual long Constants => 0;

    internal Traffic Traffic => Transport.Traffic;

    private protected RankContext Context { get; }

    private protected AttentionProblem Problem { get; }

    private protected ShardMap Shards { get; }

    private protected int QueryCount { get; }

    private protected ITransport Transport => Context.Transport;

    private protected IDevice Device => Context.Device;

    private protected Ring Ring => new(Transport.Rank, Transport.Size);

    /// <summary>Attention of the queries over the keys of all ranks.</summary>
    /// <param name="queries">This rank's queries, as many as the step was made for.</param>
    /// <param name="shard">This rank's keys and values.</param>
    /// <returns>The final state of these queries; it belongs to the step and is valid until the next run.</returns>
    /// <exception cref="ShapeMismatchException">The queries or the shard are not those that the step was made for.</exception>
    public PartialAttention Run(QueryBlock queries, KeyValueShard shard)
    {
        PartialAttention result = Enqueue(queries, shard);
        AwaitEnd();
        return result;
    }

    /// <summary>The same without waiting for the device: whoever enqueues more finds the state. <see cref="Times"/> stay those of the last run.</summary>
    /// <inheritdoc cref="Run"/>
    public PartialAttention Enqueue(QueryBlock queries, KeyValueShard shard)
    {
        ShardPlan plan = Shards.PlanOf(Shards.Ranks == 1 ? 0 : Transport.Rank);
        if (queries.Count != QueryCount || shard.Plan.Elements != plan.Elements)
        {
            throw new ShapeMismatchException(
                $"Rank {Transport.Rank}: a step made for {QueryCount} queries and a shard of {plan.Elements} "
                + $"elements was given {queries.Count} queries and {shard.Plan.Elements} elements.");
        }

        return _replay is null ? RunDirectly(queries, shard) : _replay.Run(queries, shard);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees what the step allocated.</summary>
    protected virtual void Dispose(bool disposing)
    {
        _replay?.Dispose();
        _clock.Dispose();
        foreach (Region region in _memory)
        {
            Device.Free(region);
        }

        _memory.Clear();
    }

    private protected abstract PartialAttention RunStep(QueryBlock queries, KeyValueShard shard);

    private protected Region Allocate(long elements, ElementType type)
    {
        Region region = Device.Allocate(type.BytesFor(elements), type);
        _memory.Add(region);
        return region;
    }

    private protected PartialAttention AllocateState(int queryCount)
    {
        int rows = RowsFor(queryCount);
        int valueDim = Problem.Shape.ValueDim;
        return new PartialAttention(Allocate(PartialAttention.FloatsFor(rows, valueDim), ElementType.Float32), rows, valueDim);
    }

    private protected int RowsFor(int queryCount) => checked(Problem.Shape.Batch * Problem.Shape.QueryHeads * queryCount);

    private protected void BeginCompute() => Begin("compute");

    private protected void EndCompute() => End(isCompute: true);

    private protected void BeginCommunication(string operation) => Begin(operation);

    private protected void EndCommunication() => End(isCompute: false);

    /// <summary>Folds by a reduction, which tells the control plane itself.</summary>
    private protected void Fold(Reduction reduction, PartialAttention state)
    {
        _clock.Begin();
        reduction.Reduce(state);
        _clock.End(isCompute: false);
    }

    /// <summary>Does the work of a run as far as the host has a part in it; <see cref="AwaitEnd"/> comes after it.</summary>
    internal PartialAttention RunDirectly(QueryBlock queries, KeyValueShard shard)
    {
        _clock.Restart();
        return RunStep(queries, shard);
    }

    /// <summary>Waits for the enqueued work, and reads where its time went.</summary>
    /// <remarks>What is in stream order was only enqueued: here the ranks wait for each other, and whoever watches must know.</remarks>
    internal void AwaitEnd()
    {
        if (Transport.IsStreamOrdered)
        {
            Context.Control.Enter("end of the step");
            Device.Synchronize();
            Context.Control.Leave();
        }
        else
        {
            Device.Synchronize();
        }

        Times = _clock.Read();
    }

    private void Begin(string operation)
    {
        Context.Control.Enter(operation);
        _clock.Begin();
    }

    private void End(bool isCompute)
    {
        _clock.End(isCompute);
        Context.Control.Leave();
    }
}

/// <summary>A rank that holds all keys: its partial is the result, and every rank computes it for itself. Memory: one state.</summary>
internal sealed class SingleStep : AttentionStep
{
    private readonly PartialAttention _state;

    public SingleStep(RankContext context, AttentionProblem problem, ShardMap shards, int queryCount)
        : base(context, problem, shards, queryCount) => _state = AllocateState(queryCount);

    internal override bool IsCapturable => true;

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        BeginCompute();
        Device.Attend(Problem, queries, shard, _state);
        EndCompute();
        return _state;
    }
}
