using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>From the name of a reduction to the reduction.</summary>
internal static class ReductionFactory
{
    /// <summary>Makes a reduction. Every rank calls it with the same arguments.</summary>
    /// <param name="kind">Which; <see cref="ReductionKind.Auto"/> is decided by rank 0.</param>
    /// <param name="context">The rank.</param>
    /// <param name="rows">Rows of the states.</param>
    /// <param name="valueDim">Elements of an output row.</param>
    /// <param name="unit">What a weight of 1 counts in sums of numerators: a power of two, below 1 where they could overflow.</param>
    /// <param name="nodes">The node of each rank for <see cref="ReductionKind.TwoLevel"/>; the transport's when null.</param>
    /// <exception cref="FaultException">The transport cannot do it (69), or <paramref name="nodes"/> does not name one node for each rank (2).</exception>
    public static Reduction Create(
        ReductionKind kind, RankContext context, int rows, int valueDim, float unit = 1f, IReadOnlyList<int>? nodes = null)
    {
        nodes ??= context.Transport.Nodes;
        bool chosen = kind == ReductionKind.Auto;
        kind = chosen ? ReductionChoice.Agree(context, nodes, PartialAttention.FloatsFor(rows, valueDim) * sizeof(float)) : kind;
        switch (kind)
        {
            case ReductionKind.ThreeAllReduce:
                return new ThreeAllReduce(context, rows, valueDim) { Unit = unit };
            case ReductionKind.TwoAllReduce:
                return new TwoAllReduce(context, rows, valueDim) { Unit = unit };
            case ReductionKind.Fused:
                return new FusedReduction(context, rows, valueDim);
            case ReductionKind.AllGather:
                return new AllGatherReduction(context, rows, valueDim);
            case ReductionKind.Butterfly:
                return new ButterflyReduction(context, rows, valueDim);
            case ReductionKind.TwoLevel:
                return new TwoLevelReduction(context, rows, valueDim, nodes);
            case ReductionKind.AllToAll:
                return new AllToAllReduction(context, rows, valueDim);
            case ReductionKind.OneShot when OneShotReduction.SharePeerMemory(context, rows, valueDim) is { } peers:
                return new OneShotReduction(context, rows, valueDim, peers);
            case ReductionKind.OneShot when chosen:
                return new ButterflyReduction(context, rows, valueDim);
            case ReductionKind.OneShot:
                throw OneShotReduction.NoPeerMemory(context);
            default:
                throw new ArgumentOutOfRangeException(
                    nameof(kind), kind, "Folds no single state; the lanes reduction is a part of the reproducible step.");
        }
    }
}
