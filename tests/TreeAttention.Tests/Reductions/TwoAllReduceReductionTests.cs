using TreeAttention.Distributed;

namespace TreeAttention.Tests;

public sealed class TwoAllReduceReductionTests : ReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.TwoAllReduce;
}
