using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>A way to compute a call, as <c>treeattn verify</c> tries it.</summary>
/// <param name="Name">What its line is called.</param>
/// <param name="Plan">The plan.</param>
internal sealed record VerifyPlan(string Name, AttentionPlan Plan)
{
    /// <summary>Keys lie in lanes, and the bits do not depend on the number of ranks.</summary>
    public bool IsReproducible => Plan.Reduction == ReductionKind.Lanes;

    /// <summary>Each rank has its share of the queries.</summary>
    public bool IsSharded => Plan.Placement == QueryPlacement.Sharded;

    /// <summary>Promises the same bits on every rank and in every run, whatever the library below does.</summary>
    public bool PromisesBits => Plan.Algorithm == AttentionAlgorithm.Tree
        && Plan.Reduction is ReductionKind.AllGather or ReductionKind.Butterfly or ReductionKind.OneShot or ReductionKind.Lanes;

    /// <summary>The reproducible plan.</summary>
    public static VerifyPlan Reproducible { get; } = OfTree("tree/lanes", ReductionKind.Lanes);

    /// <summary>Every algorithm with every reduction and placement that the group's transport can do, and two levels over made-up nodes.</summary>
    public static IReadOnlyList<VerifyPlan> All(AttentionGroup group) =>
    [
        .. Contestants.Plans(group, QueryPlacement.Replicated).Select(plan => new VerifyPlan(Contestants.NameOf(plan), plan)),
        .. Contestants.Plans(group, QueryPlacement.Sharded).Select(plan => new VerifyPlan($"{Contestants.NameOf(plan)} (sharded)", plan)),
        TwoLevel("halves", group.Size, rank => 2 * rank / group.Size),
        TwoLevel("alternating", group.Size, rank => rank % 2),
        TwoLevel("one each", group.Size, rank => rank),
        Reproducible,
        new("single", new AttentionPlan(AttentionAlgorithm.Single, ReductionKind.Auto, QueryPlacement.Replicated)),
    ];

    private static VerifyPlan TwoLevel(string nodes, int ranks, System.Func<int, int> nodeOf)
    {
        VerifyPlan plan = OfTree($"tree/two-level ({nodes})", ReductionKind.TwoLevel);
        return plan with { Plan = plan.Plan with { Nodes = [.. Enumerable.Range(0, ranks).Select(nodeOf)] } };
    }

    private static VerifyPlan OfTree(string name, ReductionKind reduction) =>
        new(name, new AttentionPlan(AttentionAlgorithm.Tree, reduction, QueryPlacement.Replicated));
}
