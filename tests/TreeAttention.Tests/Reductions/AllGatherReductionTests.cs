using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class AllGatherReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.AllGather;
}
