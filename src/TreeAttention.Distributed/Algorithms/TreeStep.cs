using System;

namespace TreeAttention.Distributed;

/// <summary>Each rank attends to its own keys, a reduction folds the states. Memory: one state and the reduction's scratch.</summary>
internal sealed class TreeStep : AttentionStep
{
    private readonly PartialAttention _state;
    private readonly Reduction _reduction;

    public TreeStep(RankContext context, AttentionProblem problem, ShardMap shards, AttentionPlan plan, int queryCount)
        : base(context, problem, shards, queryCount)
    {
        _state = AllocateState(queryCount);
        _reduction = Distributed.Reduction.Create(
            plan.Reduction, context, _state.Rows, _state.ValueDim, NumeratorUnit.For(shards), plan.Nodes);
    }

    /// <inheritdoc/>
    public override ReductionKind Reduction => _reduction.Kind;

    internal override bool IsCapturable => _reduction.IsCapturable;

    /// <inheritdoc/>
    internal override long Constants => Shards.IsGrowing ? BitConverter.SingleToInt32Bits(NumeratorUnit.For(Shards)) : 0;

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _reduction.Dispose();
        }

        base.Dispose(disposing);
    }

    private protected override PartialAttention RunStep(QueryBlock queries, KeyValueShard shard)
    {
        BeginCompute();
        Device.Attend(Problem, queries, shard, _state);
        EndCompute();
        if (Shards.IsGrowing)
        {
            _reduction.Unit = NumeratorUnit.For(Shards);
        }

        Fold(_reduction, _state);
        return _state;
    }
}
