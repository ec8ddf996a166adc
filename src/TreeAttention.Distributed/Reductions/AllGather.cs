using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>One all-gather of the states, then the canonical fold on every rank.</summary>
/// <remarks>One collective of a state. Scratch: p states.</remarks>
internal sealed class AllGatherReduction : Reduction
{
    private readonly Region _all;
    private readonly PartialAttention[] _states;
    private readonly FoldStep[] _steps;

    public AllGatherReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        int ranks = context.Transport.Size;
        _all = Allocate(ranks * PartialAttention.FloatsFor(rows, valueDim));
        _states = StatesIn(_all, ranks, rows, valueDim);
        _steps = FoldTree.StepsFor(ranks);
    }

    public override ReductionKind Kind => ReductionKind.AllGather;

    private protected override string Operation => "all-gather";

    private protected override void FoldAll(PartialAttention state)
    {
        Transport.AllGather(state.Region, _all);
        FoldTree.Fold(Context.Device, _states, _steps);
        Context.Device.Copy(_states[0].Region, state.Region);
    }
}
