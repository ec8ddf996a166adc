namespace TreeAttention.Tests.Reductions;

public sealed class ThreeAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.ThreeAllReduce;
}
