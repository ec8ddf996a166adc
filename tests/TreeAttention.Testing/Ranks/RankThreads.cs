using System;
using System.Collections.Generic;
using TreeAttention.Communication.InProcess;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;

namespace TreeAttention.Testing.Ranks;

/// <summary>Starts in-process ranks with plain devices.</summary>
internal static class RankThreads
{
    public static void Run(int ranks, Action<RankContext> body, IReadOnlyList<int>? nodes = null)
    {
        using var group = InProcessGroup.Create(ranks, nodes);
        group.Run(rank =>
        {
            using var device = new PlainDevice();
            body(new RankContext(group.Transports[rank], device, group.Controls[rank]));
        });
    }

    /// <summary>Runs one step of a plan on every rank and returns each rank's final state, and the indices of its queries.</summary>
    public static (float[] State, int[] Indices)[] Attend(
        AttentionCase attention, ShardLayout layout, AttentionPlan plan, int ranks, IReadOnlyList<int>? nodes = null)
    {
        var results = new (float[] State, int[] Indices)[ranks];
        Run(ranks, context => results[context.Transport.Rank] = Attend(attention, layout, plan, context), nodes);
        return results;
    }

    /// <summary>One rank's part of a step.</summary>
    public static (float[] State, int[] Indices) Attend(AttentionCase attention, ShardLayout layout, AttentionPlan plan, RankContext context)
    {
        int rank = context.Transport.Rank;
        int ranks = context.Transport.Size;
        bool holdsAll = plan.Algorithm == AttentionAlgorithm.Single;
        ShardLayout keys = holdsAll ? ShardLayout.Contiguous : layout;
        ShardMap shards = attention.ShardsFor(keys, holdsAll ? 1 : ranks);
        int[] indices = QueryLayout.IndicesOf(plan.Placement, layout, attention.Shape, rank, ranks);
        QueryBlock queries = attention.QueriesOn(context.Device, indices);
        KeyValueShard shard = attention.ShardOn(context.Device, shards, holdsAll ? 0 : rank);
        if (!holdsAll)
        {
            shards.ShareLimits(context.Control, shard.Limits);
        }

        using AttentionStep step = StepFactory.Create(context, attention.Problem, shards, plan, indices.Length);
        return (step.Run(queries, shard).Region.AsSpan<float>().ToArray(), indices);
    }
}
