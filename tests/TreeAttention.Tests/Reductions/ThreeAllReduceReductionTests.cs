using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class ThreeAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.ThreeAllReduce;
}
