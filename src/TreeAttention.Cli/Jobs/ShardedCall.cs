using System;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>One attention call laid out over a group: this rank's keys, values and queries on its device.</summary>
internal sealed class ShardedCall : IDisposable
{
    private readonly AttentionGroup _group;

    /// <summary>Lays out the keys and loads this rank's part; all ranks call it, and all fail if one does.</summary>
    public ShardedCall(
        AttentionGroup group, AttentionProblem problem, PlanRequest request, ElementType storageType, bool valuesInKeys,
        Func<ShardPlan, KeyValueShard> loadShard, Func<int[], QueryBlock> loadQueries, KeyValueScales? scales = null)
    {
        _group = group;
        Problem = problem;
        Request = request;
        Single = request.Plan.Algorithm == AttentionAlgorithm.Single;
        Shards = group.Together(() => Single
            ? new ShardMap(problem.Shape, ShardLayout.Contiguous, 1, storageType, valuesInKeys, scales)
            : new ShardMap(problem.Shape, request.Layout, group.Size, storageType, valuesInKeys, scales));
        Indices = group.Together(() =>
            QueryLayout.IndicesOf(request.Plan.Placement, request.Layout, problem.Shape, group.Rank, group.Size));
        Shard = group.Together(() => loadShard(Shards.PlanOf(Single ? 0 : group.Rank)));
        Queries = group.Together(() => loadQueries(Indices));
        if (!Single)
        {
            Shards.ShareLimits(group.Context.Control, Shard.Limits);
        }
    }

    /// <summary>Sizes, options and mask.</summary>
    public AttentionProblem Problem { get; }

    /// <summary>Plan and layout.</summary>
    public PlanRequest Request { get; }

    /// <summary>Every rank holds all keys.</summary>
    public bool Single { get; }

    /// <summary>Which keys each rank holds.</summary>
    public ShardMap Shards { get; }

    /// <summary>This rank's keys and values.</summary>
    public KeyValueShard Shard { get; }

    /// <summary>This rank's queries.</summary>
    public QueryBlock Queries { get; }

    /// <summary>The index of each of this rank's queries in the whole sequence.</summary>
    public int[] Indices { get; }

    /// <summary>A step of this call by a plan that fits its layout and placement.</summary>
    public AttentionStep CreateStep(AttentionPlan plan) =>
        AttentionStep.Create(_group.Context, Problem, Shards, plan, Indices.Length);

    /// <inheritdoc/>
    public void Dispose()
    {
        _group.Context.Device.Free(Shard.Contents);
        _group.Context.Device.Free(Queries.Values);
    }
}
