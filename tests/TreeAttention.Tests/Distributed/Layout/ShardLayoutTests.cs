using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Layout;

public sealed class ShardLayoutTests
{
    private static readonly int[] _lengths = [0, 1, 2, 7, 511, 512, 513, 1025, 8192, 131_073 + (256 * 512)];

    public static TheoryData<string> Layouts => ["contiguous", "zigzag", "striped", "cyclic:3", "cyclic:16", "cyclic:1000", "lanes"];

    [Theory, MemberData(nameof(Layouts))]
    public void Every_position_has_exactly_one_owner(string name)
    {
        var layout = ShardLayout.Parse(name);
        foreach (int length in _lengths)
        {
            foreach (int ranks in new[] { 1, 2, 3, 5, 8, 300 })
            {
                int[] owners = new int[length];
                foreach (PageSpan page in Enumerable.Range(0, ranks).SelectMany(rank => layout.PagesOf(rank, ranks, length)))
                {
                    for (int i = 0; i < page.Count; i++)
                    {
                        owners[page.PositionAt(i)]++;
                    }
                }

                Assert.All(owners, owned => Assert.Equal(1, owned));
            }
        }
    }

    [Theory, MemberData(nameof(Layouts))]
    public void An_interval_of_positions_is_an_interval_of_indices(string name)
    {
        var layout = ShardLayout.Parse(name);
        var random = new Random(20261121);
        foreach (PageSpan page in Enumerable.Range(0, 3).SelectMany(rank => layout.PagesOf(rank, 3, 4000)))
        {
            for (int trial = 0; trial < 50; trial++)
            {
                var positions = new KeyInterval(random.Next(-5, 4100), random.Next(-5, 4100));

                KeyInterval indices = page.IndicesIn(positions);

                IEnumerable<int> expected = Enumerable.Range(0, page.Count)
                    .Where(i => page.PositionAt(i) >= positions.First && page.PositionAt(i) < positions.End);
                IEnumerable<int> actual = indices.IsEmpty ? [] : Enumerable.Range(indices.First, indices.End - indices.First);
                Assert.Equal(expected, actual);
            }
        }
    }

    [Fact]
    public void Contiguous_gives_the_first_ranks_the_remainder()
    {
        Assert.Equal([3, 2, 2], Enumerable.Range(0, 3).Select(rank => ShardLayout.Contiguous.CountOf(rank, 3, 7)));
    }

    [Fact]
    public void Zigzag_gives_rank_r_the_chunks_r_and_2p_minus_1_minus_r()
    {
        IReadOnlyList<KeyRun> runs = ShardLayout.Zigzag.RunsOf(1, 2, 8);

        Assert.Equal([2, 4], runs.Select(run => run.First));
    }

    [Fact]
    public void Lane_nodes_of_all_ranks_tile_the_tree_and_are_few()
    {
        for (int ranks = 1; ranks <= 300; ranks++)
        {
            int lane = 0;
            for (int rank = 0; rank < ranks; rank++)
            {
                IReadOnlyList<LaneNode> nodes = LaneTree.NodesOf(rank, ranks);
                Assert.InRange(nodes.Count, ranks <= 256 ? 1 : 0, int.IsPow2(ranks) ? 1 : 14);
                foreach (LaneNode node in nodes)
                {
                    Assert.Equal(lane, node.First);
                    Assert.True(int.IsPow2(node.Size) && node.First % node.Size == 0);
                    lane += node.Size;
                }
            }

            Assert.Equal(LaneTree.Lanes, lane);
        }
    }

    [Theory, InlineData(2), InlineData(3), InlineData(4), InlineData(5), InlineData(8)]
    public void Lanes_are_balanced_from_short_contexts_on(int ranks)
    {
        for (int pages = 1; pages <= 600; pages++)
        {
            int[] owned = [.. Enumerable.Range(0, ranks).Select(rank => ShardLayout.Lanes.PagesOf(rank, ranks, pages * PageSpan.Keys).Count)];

            // A power of two is as even as can be; else a rank's lanes are more or fewer by one, and so are its pages of every 256.
            int spread = int.IsPow2(ranks) ? 1 : 4 + (pages / LaneTree.Lanes);
            Assert.InRange(owned.Max() - owned.Min(), 0, spread);
        }
    }

    [Theory, InlineData("cyclic:0"), InlineData("cyclic:-1"), InlineData("cyclic:"), InlineData("diagonal"), InlineData("cyclic:99999999999")]
    public void An_unknown_layout_is_refused_by_name(string text)
    {
        FormatException error = Assert.Throws<FormatException>(() => ShardLayout.Parse(text));

        Assert.Contains(text, error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Shard_lengths_that_do_not_add_up_name_both_sums()
    {
        ShapeMismatchException error = Assert.Throws<ShapeMismatchException>(() => ShardLayout.Lengths([10, 0, 21]).RunsOf(0, 3, 32));

        Assert.Contains("31 keys", error.Message, StringComparison.Ordinal);
        Assert.Contains("32 keys", error.Message, StringComparison.Ordinal);
    }
}
