namespace TreeAttention.Tests.Reductions;

public sealed class TwoAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.TwoAllReduce;
}
