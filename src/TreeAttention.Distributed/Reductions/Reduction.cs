using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>Folds the states of all ranks into one, the same on every rank. Scratch is allocated once; a fold allocates nothing.</summary>
internal abstract class Reduction : IDisposable
{
    private readonly List<Region> _scratch = [];

    private protected Reduction(RankContext context, int rows, int valueDim)
    {
        Context = context;
        Rows = rows;
        ValueDim = valueDim;
    }

    /// <summary>Which reduction this is; never <see cref="ReductionKind.Auto"/>.</summary>
    public abstract ReductionKind Kind { get; }

    /// <summary>What a weight of 1 counts in sums of numerators: a power of two, the same on every rank.</summary>
    internal float Unit { get; set; } = 1f;

    /// <summary>A fold can be a part of captured work.</summary>
    public virtual bool IsCapturable => Transport.IsCapturable;

    private protected RankContext Context { get; }

    private protected int Rows { get; }

    private protected int ValueDim { get; }

    private protected ITransport Transport => Context.Transport;

    /// <summary>What the control plane calls a fold.</summary>
    private protected abstract string Operation { get; }

    /// <summary>Folds the states of all ranks, in place.</summary>
    /// <exception cref="ShapeMismatchException">The state is not of the shape that the reduction was made for.</exception>
    public void Reduce(PartialAttention state)
    {
        if (state.Rows != Rows || state.ValueDim != ValueDim)
        {
            throw new ShapeMismatchException(
                $"A reduction made for {Rows} rows × {ValueDim} was given a partial of {state.Rows} rows × {state.ValueDim}.");
        }

        Context.Control.Enter(Operation);
        FoldAll(state);
        Context.Control.Leave();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Dispose(disposing: true);
        GC.SuppressFinalize(this);
    }

    /// <summary>Frees the scratch.</summary>
    protected virtual void Dispose(bool disposing)
    {
        foreach (Region region in _scratch)
        {
            Context.Device.Free(region);
        }

        _scratch.Clear();
    }

    private protected abstract void FoldAll(PartialAttention state);

    private protected Region Allocate(long floats)
    {
        Region region = Context.Device.Allocate(floats * sizeof(float), ElementType.Float32);
        _scratch.Add(region);
        return region;
    }

    private protected PartialAttention AllocateState() =>
        new(Allocate(PartialAttention.FloatsFor(Rows, ValueDim)), Rows, ValueDim);

    /// <summary>States that lie one after the other in a region.</summary>
    private protected static PartialAttention[] StatesIn(Region region, int count, int rows, int valueDim)
    {
        long floats = PartialAttention.FloatsFor(rows, valueDim);
        var states = new PartialAttention[count];
        for (int i = 0; i < count; i++)
        {
            states[i] = new PartialAttention(region.Slice(i * floats, floats), rows, valueDim);
        }

        return states;
    }
}

/// <summary>One all-reduce whose operator is the merge of states. One collective of a state; no scratch of ours.</summary>
internal sealed class FusedReduction : Reduction
{
    public FusedReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        if (!context.Transport.CanReduceStates)
        {
            throw new FaultException(
                FaultCode.Unavailable,
                $"{Setting.ReductionFused} needs a collective with a user-defined operator, which {context.Transport.Name} does not have. "
                + $"Use {Setting.Reduction} butterfly or allgather.");
        }
    }

    public override ReductionKind Kind => ReductionKind.Fused;

    private protected override string Operation => "all-reduce of states";

    private protected override void FoldAll(PartialAttention state) => Transport.AllReduceStates(state);
}
