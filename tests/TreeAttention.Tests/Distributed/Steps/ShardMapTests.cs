using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Steps;
using TreeAttention.Testing.Ranks;
using Xunit;

namespace TreeAttention.Tests.Distributed.Steps;

public sealed class ShardMapTests
{
    [Fact]
    public void Every_rank_learns_every_rank_s_limits_however_many()
    {
        // 3 ranks × unequal shards; the largest needs several pieces of 64 KiB: 24,000 limits of 8 bytes.
        var shape = new AttentionShape(40, 1, 160 * PageSpan.Keys, 4, 4, 1, 1);
        var layout = ShardLayout.Lengths([150 * PageSpan.Keys, 0, 10 * PageSpan.Keys]);

        RankThreads.Run(3, context =>
        {
            var shards = new ShardMap(shape, layout, 3, ElementType.Float32, valuesInKeys: false);
            int count = shards.LimitsOf(context.Transport.Rank).Length;
            shards.ShareLimits(context.Control, [.. Enumerable.Range(0, count).Select(i => new PageLimits(context.Transport.Rank, i))]);

            for (int rank = 0; rank < 3; rank++)
            {
                PageLimits[] limits = shards.LimitsOf(rank);
                Assert.Equal(shards.PlanOf(rank).Pages.Count * 4, limits.Length);
                Assert.All(limits.Select((limit, i) => (limit, i)), pair => Assert.Equal(new PageLimits(rank, pair.i), pair.limit));
            }

            Assert.True(context.Transport.Traffic.ControlBytes >= count * 8);
            Assert.Equal(0, context.Transport.Traffic.BytesSent);
        });
    }

    [Fact]
    public void Limits_of_another_number_are_refused()
    {
        RankThreads.Run(1, context =>
        {
            var shards = new ShardMap(new AttentionShape(1, 1, 600, 1, 1, 1, 1), ShardLayout.Contiguous, 1, ElementType.Float32, false);

            ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => shards.ShareLimits(context.Control, new PageLimits[1]));

            Assert.Contains("gave 1 page limits", error.Message, StringComparison.Ordinal);
            Assert.True(float.IsNaN(shards.LimitsOf(0)[1].LargestValue));
        });
    }
}
