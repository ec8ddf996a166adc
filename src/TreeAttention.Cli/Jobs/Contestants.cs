using System.Collections.Generic;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The plans that are compared with each other on a group.</summary>
internal static class Contestants
{
    private static readonly ReductionKind[] _reductions =
    [
        ReductionKind.ThreeAllReduce, ReductionKind.TwoAllReduce, ReductionKind.Fused, ReductionKind.AllGather,
        ReductionKind.Butterfly, ReductionKind.TwoLevel, ReductionKind.AllToAll, ReductionKind.OneShot,
    ];

    private static readonly AttentionAlgorithm[] _others =
        [AttentionAlgorithm.Ring, AttentionAlgorithm.RingNoOverlap, AttentionAlgorithm.RingQuery, AttentionAlgorithm.Gather];

    /// <summary>The reductions that this group's transport can do.</summary>
    public static IEnumerable<ReductionKind> Reductions(AttentionGroup group)
    {
        bool oneNode = !System.Linq.Enumerable.Any(group.Context.Transport.Nodes, node => node != 0);
        foreach (ReductionKind kind in _reductions)
        {
            bool can = kind switch
            {
                ReductionKind.Fused => group.Context.Transport.CanReduceStates,
                ReductionKind.OneShot => oneNode,
                _ => true,
            };
            if (can)
            {
                yield return kind;
            }
        }
    }

    /// <summary>Every plan that fits the placement of the queries: tree with each reduction, each ring, and gather.</summary>
    public static IEnumerable<AttentionPlan> Plans(AttentionGroup group, QueryPlacement placement)
    {
        if (placement == QueryPlacement.Replicated)
        {
            foreach (ReductionKind kind in Reductions(group))
            {
                yield return new AttentionPlan(AttentionAlgorithm.Tree, kind, placement);
            }
        }

        foreach (AttentionAlgorithm other in _others)
        {
            yield return new AttentionPlan(other, ReductionKind.Auto, placement);
        }
    }

    /// <summary>What tables call a plan: <c>tree/butterfly</c>, <c>ring</c>.</summary>
    public static string NameOf(AttentionPlan plan) =>
        plan.Algorithm == AttentionAlgorithm.Tree ? $"tree/{plan.Reduction.Name()}" : plan.Algorithm.Name();
}
