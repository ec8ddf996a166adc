namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class TwoAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.TwoAllReduce;
}
