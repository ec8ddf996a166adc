namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class AllGatherReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.AllGather;
}
