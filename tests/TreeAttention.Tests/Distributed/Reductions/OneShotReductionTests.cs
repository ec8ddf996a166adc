namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class OneShotReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.OneShot;
}
