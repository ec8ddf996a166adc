using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

public sealed class PlanRulesTests
{
    private static readonly AttentionCase _attention = AttentionCases.All[2];

    [Theory]
    [InlineData(AttentionAlgorithm.Tree, ReductionKind.Auto, "sharded", "contiguous", 2, "sharded query placement belongs to ring algorithms")]
    [InlineData(AttentionAlgorithm.Ring, ReductionKind.Lanes, "replicated", "lanes", 2, "ReductionKind.Lanes means AttentionAlgorithm.Tree over ShardLayout.Lanes, not ring over lanes. Give AttentionAlgorithm.Tree")]
    [InlineData(AttentionAlgorithm.Tree, ReductionKind.Lanes, "replicated", "zigzag", 2, "not tree over zigzag")]
    public void What_does_not_go_together_is_refused(
        AttentionAlgorithm algorithm, ReductionKind reduction, string placement, string layout, int ranks, string text)
    {
        var plan = new AttentionPlan(algorithm, reduction, QueryPlacements.Parse(placement));

        FaultException fault = Assert.Throws<FaultException>(() => RankThreads.Attend(_attention, ShardLayout.Parse(layout), plan, ranks));

        Assert.Equal(FaultCode.CommandLine, fault.Code);
        Assert.Contains(text, fault.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Explicit_lengths_shard_queries_only_of_the_length_of_the_keys()
    {
        FaultException fault = Assert.Throws<FaultException>(() => QueryLayout.IndicesOf(
            QueryPlacement.Sharded, ShardLayout.Lengths([20, 9]), _attention.Shape, 0, 2));

        Assert.Equal(FaultCode.CommandLine, fault.Code);
        Assert.Contains("29 keys, but there are 3 queries", fault.Message, StringComparison.Ordinal);
        Assert.Equal([0, 3], QueryLayout.IndicesOf(QueryPlacement.Sharded, ShardLayout.Zigzag, _attention.Shape with { QueryLength = 4 }, 0, 2));
    }

    [Fact]
    public void Queries_of_another_number_are_refused_before_work()
    {
        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => RankThreads.Run(2, context =>
        {
            var plan = new AttentionPlan(AttentionAlgorithm.Ring, ReductionKind.Auto, QueryPlacement.Sharded);
            StepFactory.Create(context, _attention.Problem, _attention.ShardsFor(ShardLayout.Contiguous, 2), plan, 3).Dispose();
        }));

        Assert.Contains("has 3 queries", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Names_are_read_back_and_an_unknown_one_lists_them()
    {
        foreach (AttentionAlgorithm algorithm in Enum.GetValues<AttentionAlgorithm>())
        {
            Assert.Equal(algorithm, AttentionAlgorithms.Parse(algorithm.Name()));
        }

        FormatException error = Assert.Throws<FormatException>(() => AttentionAlgorithms.Parse("Tree"));
        Assert.Contains("single, tree, ring, ring-no-overlap, ring-query", error.Message, StringComparison.Ordinal);
        Assert.Throws<FormatException>(() => QueryPlacements.Parse("both"));
    }
}
