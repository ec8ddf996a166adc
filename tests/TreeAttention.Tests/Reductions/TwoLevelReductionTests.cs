using TreeAttention.Distributed;

namespace TreeAttention.Tests;

/// <summary>All ranks of these tests share one node, so its tree is the whole tree.</summary>
public sealed class TwoLevelReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.TwoLevel;
}
