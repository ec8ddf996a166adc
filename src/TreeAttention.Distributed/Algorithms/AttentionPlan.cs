using System.Collections.Generic;

namespace TreeAttention.Distributed;

/// <summary>How an attention step is done.</summary>
/// <param name="Algorithm">How the ranks cover all keys.</param>
/// <param name="Reduction">How states are folded; only <see cref="AttentionAlgorithm.Tree"/> reads it, and <see cref="ReductionKind.Lanes"/>.</param>
/// <param name="Placement">Which queries each rank has.</param>
public sealed record AttentionPlan(AttentionAlgorithm Algorithm, ReductionKind Reduction, QueryPlacement Placement)
{
    /// <summary>The node of each rank for <see cref="ReductionKind.TwoLevel"/>, for tests of topology; the transport's when null.</summary>
    public IReadOnlyList<int>? Nodes { get; init; }
}
