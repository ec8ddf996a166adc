using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class FusedReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.Fused;
}
