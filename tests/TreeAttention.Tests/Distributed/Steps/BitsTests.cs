using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

/// <summary>Whole steps to the bit: across ranks, reductions, and in the reproducible mode across rank counts.</summary>
public sealed class BitsTests
{
    // Pages in all 256 lanes and a second round in some; the last page is cut.
    private static readonly AttentionCase _long =
        new("long", new AttentionShape(1, 1, ((LaneTree.Lanes + 5) * PageSpan.Keys) + 77, 2, 1, 2, 3), new AttentionOptions());

    [Fact]
    public void The_reproducible_step_gives_the_same_bits_on_1_to_8_and_more_ranks()
    {
        var plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Lanes, QueryPlacement.Replicated);
        float[] expected = RankThreads.Attend(_long, ShardLayout.Lanes, plan, 1)[0].State;

        foreach (int ranks in new[] { 2, 3, 4, 5, 6, 7, 8, 11 })
        {
            Assert.All(RankThreads.Attend(_long, ShardLayout.Lanes, plan, ranks), result => Assert.True(Bits.Equal(expected, result.State)));
        }

        Assert.InRange(new AttentionOracle(_long).ErrorOf(expected, [0]), 0, 1e-5);
    }

    [Fact]
    public void Without_the_lanes_the_bits_do_depend_on_the_ranks()
    {
        var plan = new AttentionPlan(AttentionAlgorithm.Tree, ReductionKind.Butterfly, QueryPlacement.Replicated);

        float[] two = RankThreads.Attend(_long, ShardLayout.Lanes, plan, 2)[0].State;
        float[] five = RankThreads.Attend(_long, ShardLayout.Lanes, plan, 5)[0].State;

        Assert.False(Bits.Equal(two, five));
    }

    [Theory, InlineData(2), InlineData(3), InlineData(4), InlineData(5), InlineData(8)]
    public void Butterfly_allgather_one_shot_and_travelling_partials_have_the_same_bits_on_every_rank(int ranks)
    {
        AttentionCase attention = AttentionCases.All[2];
        float[] expected = RankThreads.Attend(attention, ShardLayout.Striped, Tree(ReductionKind.Butterfly), ranks)[0].State;

        AttentionPlan[] plans =
        [
            Tree(ReductionKind.Butterfly), Tree(ReductionKind.AllGather), Tree(ReductionKind.OneShot),
            new AttentionPlan(AttentionAlgorithm.RingQuery, ReductionKind.Auto, QueryPlacement.Replicated),
        ];
        foreach (AttentionPlan plan in plans)
        {
            Assert.All(RankThreads.Attend(attention, ShardLayout.Striped, plan, ranks), result => Assert.True(Bits.Equal(expected, result.State)));
        }
    }

    private static AttentionPlan Tree(ReductionKind kind) => new(AttentionAlgorithm.Tree, kind, QueryPlacement.Replicated);
}
