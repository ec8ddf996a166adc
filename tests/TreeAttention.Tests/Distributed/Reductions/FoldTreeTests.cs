using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Reductions;
using TreeAttention.Distributed.Steps;
using Xunit;

namespace TreeAttention.Tests.Distributed.Reductions;

public sealed class FoldTreeTests
{
    [Fact]
    public void Every_state_is_folded_exactly_once_and_never_used_after()
    {
        for (int states = 1; states <= 133; states++)
        {
            var alive = new HashSet<int>(Enumerable.Range(0, states));
            foreach (FoldStep step in FoldTree.StepsFor(states))
            {
                Assert.Contains(step.Into, alive);
                Assert.True(alive.Remove(step.From));
            }

            Assert.Equal([0], alive);
        }
    }

    [Fact]
    public void Five_states_fold_as_the_butterfly_does()
    {
        Assert.Equal([new(0, 1), new(0, 2), new(3, 4), new(0, 3)], FoldTree.StepsFor(5));
    }

    [Theory, InlineData(1, 0), InlineData(2, 0), InlineData(3, 1), InlineData(4, 1), InlineData(8, 2), InlineData(16, 3)]
    public void One_shot_needs_scratch_by_the_depth_of_the_sibling_alone(int ranks, int states)
    {
        Assert.Equal(states * 16, ExpectedTraffic.PeakScratchBytes(ReductionKind.OneShot, 1, 2, ranks)); // a state of 1 row × 2 is 16 bytes
    }

    [Fact]
    public void Names_are_read_back_and_an_unknown_one_lists_them()
    {
        foreach (ReductionKind kind in Enum.GetValues<ReductionKind>().Where(kind => kind != ReductionKind.Lanes))
        {
            Assert.Equal(kind, ReductionKinds.Parse(kind.Name()));
        }

        FormatException unknown = Assert.Throws<FormatException>(() => ReductionKinds.Parse("tree"));
        FormatException lanes = Assert.Throws<FormatException>(() => ReductionKinds.Parse("lanes"));
        Assert.Contains("two-allreduce, fused, allgather", unknown.Message, StringComparison.Ordinal);
        Assert.Contains("ReductionKind.Lanes", lanes.Message, StringComparison.Ordinal);
    }
}
