namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class ButterflyReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.Butterfly;
}
