using System;
using System.Collections.Generic;
using System.CommandLine;
using System.Linq;
using TreeAttention.Cli.Arguments;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Cli.Verify;

/// <summary><c>treeattn verify</c>: the laws, and the agreement of every algorithm on this very group of ranks.</summary>
internal sealed class VerifyCommand
{
    private readonly GroupArguments _group = new();

    private readonly Option<int> _seed = new("--seed")
    {
        Description = "Seed of the numbers, windows, lengths and masks; the same seed gives the same cases on as many ranks.",
        DefaultValueFactory = _ => Seeds.Default,
        CustomParser = result => ArgumentText.Integer(result, 0, int.MaxValue) ?? 0,
    };

    private readonly Option<int?> _cases = new("--cases")
    {
        Description = "How many cases of the covering array; default all, once. More go through it again with other numbers.",
        CustomParser = result => ArgumentText.Integer(result, 1, 100_000),
    };

    private readonly Option<bool> _json = new("--json") { Description = "The last line of stdout is one JSON object." };

    /// <summary>The command; its action is called with what it asks for.</summary>
    public Command Build(Func<VerifyRequest, GroupOptions, int> action)
    {
        var command = new Command(
            "verify",
            "Holds every algorithm, reduction and layout against float64 on these very ranks, over a pairwise covering array of all types, "
            + "sizes and options; checks the bits that are promised, and that wrong results are noticed.");
        command.Add(_seed);
        command.Add(_cases);
        _group.AddTo(command);
        command.Add(_json);
        command.SetAction(parsed => action(
            new VerifyRequest(parsed.GetValue(_seed), parsed.GetValue(_cases), parsed.GetValue(_json)), _group.Read(parsed)));
        return command;
    }
}

/// <summary>Everything <c>treeattn verify</c> was asked.</summary>
internal sealed record VerifyRequest(int Seed, int? Cases, bool Json);

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
        .. ComparedPlans.Plans(group, QueryPlacement.Replicated).Select(plan => new VerifyPlan($"{plan}", plan)),
        .. ComparedPlans.Plans(group, QueryPlacement.Sharded).Select(plan => new VerifyPlan($"{plan} (sharded)", plan)),
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
