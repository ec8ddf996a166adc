using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class ButterflyReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.Butterfly;
}
