using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>All-reduce the max, then numerators and denominators as neighbours in one sum.</summary>
/// <remarks>Two collectives of rows and rows × (value_dim + 1) floats. Scratch: rows × (value_dim + 2) floats.</remarks>
internal sealed class TwoAllReduce : Reduction
{
    private readonly Region _top;
    private readonly Region _packed;
    private readonly Region _numerator;
    private readonly Region _denominator;

    public TwoAllReduce(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        _top = Allocate(rows);
        _packed = Allocate((long)rows * (valueDim + 1));
        _numerator = _packed.Slice(0, (long)rows * valueDim);
        _denominator = _packed.Slice((long)rows * valueDim, rows);
    }

    public override ReductionKind Kind => ReductionKind.TwoAllReduce;

    private protected override string Operation => "all-reduce";

    private protected override void FoldAll(PartialAttention state)
    {
        Context.Device.Copy(state.MaxRegion, _top);
        Transport.AllReduce(_top, ReduceOperation.Max);
        Context.Device.Weigh(state, _top, Unit, _numerator, _denominator);
        Transport.AllReduce(_packed, ReduceOperation.Sum);
        Context.Device.Unweigh(_top, Unit, _numerator, _denominator, state);
    }
}

/// <summary>Algorithm 3 of Tree Attention (arXiv 2408.04093): all-reduce the max, the numerators, the denominators.</summary>
/// <remarks>Three collectives of rows, rows × value_dim and rows floats. Scratch: rows × (value_dim + 2) floats.</remarks>
internal sealed class ThreeAllReduce : Reduction
{
    private readonly Region _top;
    private readonly Region _numerator;
    private readonly Region _denominator;

    public ThreeAllReduce(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        _top = Allocate(rows);
        _numerator = Allocate((long)rows * valueDim);
        _denominator = Allocate(rows);
    }

    public override ReductionKind Kind => ReductionKind.ThreeAllReduce;

    private protected override string Operation => "all-reduce";

    private protected override void FoldAll(PartialAttention state)
    {
        Context.Device.Copy(state.MaxRegion, _top);
        Transport.AllReduce(_top, ReduceOperation.Max);
        Context.Device.Weigh(state, _top, Unit, _numerator, _denominator);
        Transport.AllReduce(_numerator, ReduceOperation.Sum);
        Transport.AllReduce(_denominator, ReduceOperation.Sum);
        Context.Device.Unweigh(_top, Unit, _numerator, _denominator, state);
    }
}
