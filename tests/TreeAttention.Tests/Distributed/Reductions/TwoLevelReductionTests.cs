using System.Linq;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Partials;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

/// <summary>By the contract all ranks share one node, so its tree is the whole tree; here they do not.</summary>
public sealed class TwoLevelReductionTests : CanonicalReductionContract
{
    private protected override ReductionKind Kind => ReductionKind.TwoLevel;

    // Messages of the busiest rank: a leader sends to other leaders, and the result down to each rank it merged.
    [Theory]
    [InlineData("0,1,2,3", 2)] // four leaders: a butterfly
    [InlineData("0,0,1,1", 2)] // one exchange of leaders, one result down
    [InlineData("0,0,0,0,1,1,1,1", 3)] // one exchange of leaders, two results down
    [InlineData("0,1,0,2,1,0", 4)] // three leaders: the first exchanges, hands back, and sends two results down
    [InlineData("0,0,0,0,0", 3)] // one node: three results down from its leader
    public void Traffic_follows_the_nodes(string nodeText, int messages)
    {
        int[] nodes = [.. nodeText.Split(',').Select(int.Parse)];
        long[] counted = new long[nodes.Length];
        RankThreads.Run(
            nodes.Length,
            context =>
            {
                using var states = new StateAndReduction(context, Kind, 3, 5);
                RandomState.Fill(states.State, context.Transport.Rank);
                context.Transport.Traffic.Reset();
                states.Reduction.Reduce(states.State);
                counted[context.Transport.Rank] = context.Transport.Traffic.Messages;
                PlainFold.OfRandomStates(nodes.Length, 3, 5).AssertClose(states.State);
            },
            nodes);

        Assert.Equal(messages, counted.Max());
        Assert.Equal(messages, ExpectedTraffic.OfReduction(Kind, 3, 5, nodes).Messages);
    }
}
