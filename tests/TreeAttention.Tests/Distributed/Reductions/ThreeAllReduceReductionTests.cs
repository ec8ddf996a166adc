namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class ThreeAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.ThreeAllReduce;
}
