using System;
using System.Linq;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class ReductionChoiceTests
{
    private const long Small = 16_640; // 32 rows × 128: one decode step
    private const long Large = 64 << 20;

    [Theory]
    [InlineData("0,0", Small, ReductionKind.OneShot)]
    [InlineData("0,0,0,0,0,0,0,0", Small, ReductionKind.OneShot)]
    [InlineData("0,1,2", Small, ReductionKind.AllGather)]
    [InlineData("0,0,0,0,1,1,1,1", Small, ReductionKind.Butterfly)]
    [InlineData("0,0,1,1", Large, ReductionKind.TwoLevel)]
    [InlineData("0,1,2,3", Large, ReductionKind.Butterfly)]
    [InlineData("0,0,0,0,0,0,0,0", Large, ReductionKind.AllToAll)]
    [InlineData("0,0", Large, ReductionKind.Butterfly)]
    public void The_rule_follows_size_and_topology(string nodes, long bytes, ReductionKind expected)
    {
        Assert.Equal(expected, ReductionChoice.For([.. nodes.Split(',').Select(int.Parse)], bytes));
    }

    [Fact]
    public void Every_rank_takes_what_rank_0_chose()
    {
        RankThreads.Run(3, context =>
        {
            // Only rank 0 believes in one node.
            int[] nodes = context.Transport.Rank == 0 ? [0, 0, 0] : [0, 1, 2];

            using Reduction reduction = ReductionFactory.Create(ReductionKind.Auto, context, 4, 4, nodes: nodes);

            Assert.Equal(ReductionKind.OneShot, reduction.Kind);
        });
    }

    [Fact]
    public void Auto_without_peer_memory_falls_back_to_the_butterfly()
    {
        RankThreads.Run(
            2,
            context =>
            {
                using Reduction reduction = ReductionFactory.Create(ReductionKind.Auto, context, 4, 4, nodes: [0, 0]);

                Assert.Equal(ReductionKind.Butterfly, reduction.Kind);
            },
            nodes: [0, 1]);
    }

    [Fact]
    public void One_shot_over_several_nodes_names_the_way_out()
    {
        FaultException fault = Assert.Throws<FaultException>(() => RankThreads.Run(
            2, context => ReductionFactory.Create(ReductionKind.OneShot, context, 4, 4).Dispose(), nodes: [0, 1]));

        Assert.Equal(FaultCode.Unavailable, fault.Code);
        Assert.Contains("AttentionPlan.Reduction butterfly", fault.Message, StringComparison.Ordinal);
    }
}
