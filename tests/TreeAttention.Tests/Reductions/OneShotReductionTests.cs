using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class OneShotReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.OneShot;
}
