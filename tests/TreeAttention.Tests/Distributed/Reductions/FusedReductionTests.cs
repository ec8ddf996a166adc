namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class FusedReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.Fused;
}
