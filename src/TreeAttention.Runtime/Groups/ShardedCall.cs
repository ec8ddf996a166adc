using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Runtime.Groups;

/// <summary>One attention call laid out over a group: this rank's keys, values and queries on its device.</summary>
internal sealed class ShardedCall : IDisposable
{
    private readonly AttentionGroup _group;

    /// <summary>Lays out the keys and loads this rank's part; all ranks call it, and all fail if one does.</summary>
    /// <param name="group">The ranks.</param>
    /// <param name="problem">Sizes, options and mask.</param>
    /// <param name="plan">Placement of queries; where one rank holds all keys, every rank does.</param>
    /// <param name="layout">Which keys each rank holds.</param>
    /// <param name="storageType">Storage type of keys and values.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys.</param>
    /// <param name="loadShard">Loads this rank's keys and values.</param>
    /// <param name="loadQueries">Loads the queries at these indices.</param>
    /// <param name="scales">Scales of the storage; 1 when null.</param>
    public ShardedCall(
        AttentionGroup group, AttentionProblem problem, AttentionPlan plan, ShardLayout layout, ElementType storageType, bool valuesInKeys,
        Func<ShardPlan, KeyValueShard> loadShard, Func<int[], QueryBlock> loadQueries, KeyValueScales? scales = null)
    {
        _group = group;
        Problem = problem;
        Plan = plan;
        Layout = layout;
        Single = plan.Algorithm == AttentionAlgorithm.Single;
        Shards = group.Together(() => Single
            ? new ShardMap(problem.Shape, ShardLayout.Contiguous, 1, storageType, valuesInKeys, scales, problem.Present)
            : new ShardMap(
                problem.Shape, layout, group.Size, storageType, valuesInKeys, scales, problem.Present, plan.Reduction == ReductionKind.Lanes));
        Indices = group.Together(() => QueryLayout.IndicesOf(plan.Placement, layout, problem.Shape, group.Rank, group.Size));
        MemoryRoom.Require(
            "The keys and values take", MemoryRoom.Gather(group.Context), rank => Shards.PlanOf(Single ? 0 : rank).Bytes, problem.Shape.KeyLength,
            "a smaller batch");
        Shard = group.Together(() => loadShard(Shards.PlanOf(Single ? 0 : group.Rank)));
        try
        {
            Queries = group.Together(() => loadQueries(Indices));
        }
        catch
        {
            Device.Free(Shard.Contents);
            throw;
        }

        if (!Single)
        {
            Shards.ShareLimits(group.Context.Control, Shard.Limits);
        }
    }

    /// <summary>Sizes, options and mask.</summary>
    public AttentionProblem Problem { get; }

    /// <summary>The plan that the call was laid out for.</summary>
    public AttentionPlan Plan { get; }

    /// <summary>Which keys each rank holds.</summary>
    public ShardLayout Layout { get; }

    /// <summary>Every rank holds all keys.</summary>
    public bool Single { get; }

    /// <summary>The same, as pages.</summary>
    public ShardMap Shards { get; }

    /// <summary>This rank's keys and values.</summary>
    public KeyValueShard Shard { get; }

    /// <summary>This rank's queries.</summary>
    public QueryBlock Queries { get; }

    /// <summary>The index of each of this rank's queries in the whole sequence.</summary>
    public int[] Indices { get; }

    private IDevice Device => _group.Context.Device;

    /// <summary>A step of this call by a plan that fits its layout and placement.</summary>
    public AttentionStep CreateStep(AttentionPlan plan) =>
        StepFactory.Create(_group.Context, Problem, Shards, plan, Indices.Length);

    /// <summary>Takes a state of this rank's queries over the edge: sinks, log-sum-exp, the caller's order.</summary>
    /// <param name="state">The state, in the device's memory.</param>
    /// <param name="output">[batch, indices, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, indices], in the base of the options, sinks included.</param>
    public void Finish(PartialAttention state, Span<float> output, Span<float> lse)
    {
        using var host = new HostState(state.Rows, state.ValueDim);
        AttentionEdge.Finish(Problem, Indices, host.Take(Device, state), output, lse);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        Device.Free(Shard.Contents);
        Device.Free(Queries.Values);
    }
}
