using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

/// <summary>What the reductions that fold along the canonical tree do beyond <see cref="ReductionContract"/>: the very same bits.</summary>
public abstract class CanonicalReductionContract : ReductionContract
{
    [Theory, MemberData(nameof(RankCounts))]
    public void The_bits_are_those_of_the_all_gather(int ranks)
    {
        float[] expected = ReduceRandomStates(ranks, 6, 19, ReductionKind.AllGather)[0];

        float[] actual = ReduceRandomStates(ranks, 6, 19, Kind)[0];

        Assert.True(Bits.Equal(expected, actual));
    }

    [Theory, MemberData(nameof(RankCounts))]
    public void Sibling_ranks_may_swap_their_states(int ranks)
    {
        float[] first = ReduceRandomStates(ranks, 6, 19, Kind)[0];

        float[] swapped = Reduce(ranks, 6, 19, Kind, rank => rank < 2 && ranks > 1 ? 1 - rank : rank)[0];

        Assert.True(Bits.Equal(first, swapped));
    }

    [Fact]
    public void Another_order_of_folding_is_noticed()
    {
        float[] first = ReduceRandomStates(8, 6, 19, Kind)[0];

        float[] rotated = Reduce(8, 6, 19, Kind, rank => (rank + 1) % 8)[0];

        Assert.False(Bits.Equal(first, rotated));
    }
}
