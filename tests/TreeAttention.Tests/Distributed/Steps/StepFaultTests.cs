using System;
using System.Diagnostics;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

/// <summary>A rank that fails between two steps ends the others inside theirs, whatever they wait in.</summary>
public sealed class StepFaultTests
{
    [Theory, MemberData(nameof(StepTests.Plans), MemberType = typeof(StepTests))]
    public void A_rank_that_fails_ends_every_other_rank_s_step(AttentionAlgorithm algorithm, ReductionKind reduction, string placement)
    {
        var plan = new AttentionPlan(algorithm, reduction, QueryPlacements.Parse(placement));
        ShardLayout layout = reduction == ReductionKind.Lanes ? ShardLayout.Lanes : ShardLayout.Contiguous;
        AttentionCase attention = AttentionCases.All[2];
        var codes = new FaultCode[3];
        long start = Stopwatch.GetTimestamp();

        TimeoutException thrown = Assert.Throws<TimeoutException>(() => RankThreads.Run(3, context =>
        {
            int rank = context.Transport.Rank;
            ShardMap shards = attention.ShardsFor(layout, 3);
            int[] indices = QueryLayout.IndicesOf(plan.Placement, layout, attention.Shape, rank, 3);
            QueryBlock queries = attention.QueriesOn(context.Device, indices);
            KeyValueShard shard = attention.ShardOn(context.Device, shards, rank);
            using AttentionStep step = StepFactory.Create(context, attention.Problem, shards, plan, indices.Length);
            step.Run(queries, shard);

            // A fault ends the others wherever they are; after the barrier that is not in their first run.
            context.Transport.Barrier();
            if (rank == 1)
            {
                throw new TimeoutException("rank 1 is out of time");
            }

            codes[rank] = Assert.Throws<FaultException>(() =>
            {
                step.Run(queries, shard);
                step.Run(queries, shard); // a rank that needs nothing from rank 1 in its first run needs it in the next
            }).Code;
        }));

        Assert.Equal("rank 1 is out of time", thrown.Message);
        Assert.Equal([FaultCode.PeerLost, FaultCode.None, FaultCode.PeerLost], codes);
        Assert.InRange(Stopwatch.GetElapsedTime(start), TimeSpan.Zero, TimeSpan.FromSeconds(60));
    }

    [Theory, InlineData(0), InlineData(1), InlineData(2)]
    public void A_device_that_fails_while_a_shard_travels_ends_the_ring_with_its_own_fault(int attends)
    {
        var plan = new AttentionPlan(AttentionAlgorithm.Ring, ReductionKind.Auto, QueryPlacement.Replicated);

        TimeoutException thrown = Assert.Throws<TimeoutException>(() => RankThreads.Run(3, context =>
        {
            using var failing = new FailingDevice(context.Device, context.Transport.Rank == 1 ? attends : -1);
            RankThreads.Attend(AttentionCases.All[2], ShardLayout.Contiguous, plan, context with { Device = failing });
            context.Transport.Barrier();
        }));

        Assert.Equal("the device is out of time", thrown.Message);
    }
}
