using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;

namespace TreeAttention;

/// <summary>How the ranks come from their shards to attention over all keys.</summary>
public enum AttentionAlgorithm
{
    /// <summary>One rank holds all keys.</summary>
    Single,

    /// <summary>Each rank attends to its own keys; a reduction folds the states.</summary>
    Tree,

    /// <summary>Keys and values travel around the ring; the next shard travels while the current one is attended to.</summary>
    Ring,

    /// <summary>Like <see cref="Ring"/>, but a shard travels only after it was attended to.</summary>
    RingNoOverlap,

    /// <summary>Keys stay; partials (queries replicated) or queries with their partials (queries sharded) travel.</summary>
    RingQuery,

    /// <summary>Every rank gathers all keys and values, then attends to them alone: the plain way to prefill.</summary>
    Gather,
}

/// <summary>The names of <see cref="AttentionAlgorithm"/>.</summary>
internal static class AttentionAlgorithms
{
    /// <summary>The name users write.</summary>
    public static string Name(this AttentionAlgorithm algorithm) => algorithm switch
    {
        AttentionAlgorithm.Single => "single",
        AttentionAlgorithm.Tree => "tree",
        AttentionAlgorithm.Ring => "ring",
        AttentionAlgorithm.RingNoOverlap => "ring-no-overlap",
        AttentionAlgorithm.RingQuery => "ring-query",
        AttentionAlgorithm.Gather => "gather",
        _ => throw new ArgumentOutOfRangeException(nameof(algorithm), algorithm, "No such algorithm."),
    };

    /// <summary>Reads a name.</summary>
    /// <exception cref="FormatException">There is no such algorithm; the message lists those there are.</exception>
    public static AttentionAlgorithm Parse(string text)
    {
        AttentionAlgorithm[] all = Enum.GetValues<AttentionAlgorithm>();
        foreach (AttentionAlgorithm algorithm in all)
        {
            if (algorithm.Name() == text)
            {
                return algorithm;
            }
        }

        throw new FormatException($"'{text}' is no algorithm; there are {string.Join(", ", all.Select(one => one.Name()))}.");
    }
}

/// <summary>How an attention step is done.</summary>
/// <param name="Algorithm">How the ranks cover all keys.</param>
/// <param name="Reduction">How states are folded; only <see cref="AttentionAlgorithm.Tree"/> reads it, and <see cref="ReductionKind.Lanes"/>.</param>
public sealed record AttentionPlan(AttentionAlgorithm Algorithm, ReductionKind Reduction = ReductionKind.Auto)
{
    internal AttentionPlan(AttentionAlgorithm algorithm, ReductionKind reduction, QueryPlacement placement)
        : this(algorithm, reduction) => Placement = placement;

    /// <summary>Which queries each rank has: all of them, unless the command line deals them.</summary>
    internal QueryPlacement Placement { get; init; }

    /// <summary>The node of each rank for <see cref="ReductionKind.TwoLevel"/>, for tests of topology; the transport's when null.</summary>
    public IReadOnlyList<int>? Nodes { get; init; }

    /// <summary>What tables call the plan: <c>tree/butterfly</c>, <c>ring</c>.</summary>
    public override string ToString() => Algorithm == AttentionAlgorithm.Tree ? $"{Algorithm.Name()}/{Reduction.Name()}" : Algorithm.Name();
}

/// <summary>Which parts of a plan go together.</summary>
internal static class PlanRules
{
    /// <summary>Throws when the plan contradicts itself or does not fit the ranks.</summary>
    /// <exception cref="FaultException">The plan asks for what does not go together (2).</exception>
    /// <exception cref="ShapeMismatchException">The shards or the queries are of other sizes.</exception>
    public static void Check(ITransport transport, AttentionShape shape, ShardMap shards, AttentionPlan plan, int queryCount)
    {
        bool movesKeysOrQueries = plan.Algorithm is not (AttentionAlgorithm.Single or AttentionAlgorithm.Tree);
        if (plan.Placement == QueryPlacement.Sharded && !movesKeysOrQueries)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{Setting.PlacementSharded} belongs to ring algorithms and gather, not to {plan.Algorithm.Name()}. Use {Setting.Algorithm} ring, "
                + $"ring-query or gather, or {Setting.PlacementReplicated}.");
        }

        if (plan.Reduction == ReductionKind.Lanes && (movesKeysOrQueries || !shards.Layout.IsLanes))
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{Setting.Reproducible} means {Setting.AlgorithmTree} over {Setting.ShardLanes}, not {plan.Algorithm.Name()} over {shards.Layout.Name}. "
                + $"{Setting.AskForLanes}.");
        }

        int holders = plan.Algorithm == AttentionAlgorithm.Single ? 1 : transport.Size;
        if (shards.Ranks != holders || shards.Shape != shape)
        {
            throw new ShapeMismatchException(
                $"The shard map is of {shards.Ranks} ranks and {shards.Shape}, but the keys of {plan.Algorithm.Name()} lie on {holders} and the call is {shape}.");
        }

        int expected = QueryLayout.IndicesOf(plan.Placement, shards.Layout, shape, transport.Rank, transport.Size).Length;
        if (queryCount != expected)
        {
            throw new ShapeMismatchException(
                $"Rank {transport.Rank} of {transport.Size} has {queryCount} queries, but {plan.Placement.Name()} queries over "
                + $"{shards.Layout.Name} are {expected} for it.");
        }
    }
}
