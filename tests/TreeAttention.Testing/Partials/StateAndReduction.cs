using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;

namespace TreeAttention.Testing.Partials;

/// <summary>A rank's state and the reduction that folds it, freed together.</summary>
internal sealed class StateAndReduction : IDisposable
{
    private readonly IDevice _device;

    public StateAndReduction(RankContext context, ReductionKind kind, int rows, int valueDim)
    {
        _device = context.Device;
        Region region = _device.Allocate(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
        State = new PartialAttention(region, rows, valueDim);
        Reduction = ReductionFactory.Create(kind, context, rows, valueDim);
    }

    public PartialAttention State { get; }

    public Reduction Reduction { get; }

    public void Dispose()
    {
        Reduction.Dispose();
        _device.Free(State.Region);
    }
}
