using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using Xunit;

namespace TreeAttention.Tests.Distributed.Cache;

public sealed class CacheBalanceTests
{
    // Found by this very count; the worst is 3 ranks.
    private const double PagesAbove = 2.78;

    [Fact]
    public void A_growing_row_gives_no_rank_more_than_its_lanes_part_and_three_pages()
    {
        double worst = 0;
        for (int ranks = 1; ranks <= LaneTree.Lanes; ranks++)
        {
            bool divides = LaneTree.Lanes % ranks == 0;
            int[] lanes = [.. Enumerable.Range(0, ranks).Select(rank => LaneTree.LanesOf(rank, ranks).Count())];
            int[] owned = new int[ranks];
            for (int pages = 1; pages <= 3 * LaneTree.Lanes; pages++)
            {
                owned[LaneTree.OwnerOf(pages - 1, ranks)]++;
                double above = Enumerable.Range(0, ranks).Max(rank => owned[rank] - ((double)pages * lanes[rank] / LaneTree.Lanes));
                worst = Math.Max(worst, above);
                Assert.True(above < (divides ? 1 : PagesAbove), $"{ranks} ranks, {pages} pages: one has {above} more than its part");
            }

            Assert.Equal((LaneTree.Lanes + ranks - 1) / ranks, lanes.Max());
            Assert.Equal(3 * lanes.Max(), owned.Max()); // after every 256 pages the parts are exact
        }

        Assert.InRange(worst, PagesAbove - 0.01, PagesAbove); // the bound that is stated is no larger than it must be
    }

    [Theory]
    [InlineData(3, 1.008)]
    [InlineData(5, 1.016)]
    [InlineData(6, 1.008)]
    [InlineData(7, 1.012)]
    [InlineData(8, 1.0)]
    [InlineData(12, 1.032)]
    [InlineData(48, 1.125)]
    public void In_the_long_run_the_busiest_rank_has_as_much_more_than_the_mean_as_is_stated(int ranks, double stated)
    {
        int most = Enumerable.Range(0, ranks).Max(rank => LaneTree.LanesOf(rank, ranks).Count());

        Assert.InRange((double)most * ranks / LaneTree.Lanes, stated - 0.001, stated);
    }
}
