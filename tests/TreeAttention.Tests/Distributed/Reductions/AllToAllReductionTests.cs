namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class AllToAllReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.AllToAll;
}
