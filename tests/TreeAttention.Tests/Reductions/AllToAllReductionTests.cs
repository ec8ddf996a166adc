using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class AllToAllReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.AllToAll;
}
