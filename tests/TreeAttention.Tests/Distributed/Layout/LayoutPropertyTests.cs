using System.Collections.Generic;
using System.Linq;
using CsCheck;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;
using Xunit;

namespace TreeAttention.Tests.Distributed.Layout;

/// <summary>The arithmetic of positions under any layout, ranks and length; a failure prints its seed and the smallest case that was found.</summary>
public sealed class LayoutPropertyTests
{
    private const int MostKeys = 3000;

    private static readonly string[] _plain = ["contiguous", "zigzag", "striped", "lanes"];

    private static readonly Gen<string> _names = Gen.OneOf(
        Gen.Int[0, _plain.Length - 1].Select(i => _plain[i]), Gen.Int[1, 700].Select(block => $"cyclic:{block}"));

    private static readonly Gen<(string Name, int Ranks, int Length)> _shards = Gen.Select(_names, Gen.Int[1, 9], Gen.Int[0, MostKeys]);

    [Fact]
    public void Every_position_has_one_owner_and_pages_are_short_and_ascend() => _shards.Sample(
        shards =>
        {
            int[] owners = new int[shards.Length];
            foreach (PageSpan page in Pages(shards))
            {
                int[] positions = [.. Enumerable.Range(0, page.Count).Select(page.PositionAt)];
                Assert.InRange(page.Count, 1, PageSpan.Keys);
                Assert.Equal(positions.Order().Distinct(), positions);
                Assert.Equal((positions[0], positions[^1]), (page.FirstPosition, page.LastPosition));
                foreach (int position in positions)
                {
                    owners[position]++;
                }
            }

            Assert.DoesNotContain(owners, owned => owned != 1);
        },
        iter: 300, threads: 1);

    [Fact]
    public void An_interval_of_positions_is_an_interval_of_indices() => Gen.Select(_shards, Gen.Int[-5, MostKeys + 5], Gen.Int[-5, MostKeys + 5]).Sample(
        (shards, first, end) =>
        {
            foreach (PageSpan page in Pages(shards))
            {
                KeyInterval indices = page.IndicesIn(new KeyInterval(first, end));

                IEnumerable<int> expected = Enumerable.Range(0, page.Count).Where(i => page.PositionAt(i) >= first && page.PositionAt(i) < end);
                Assert.Equal(expected, indices.IsEmpty ? [] : Enumerable.Range(indices.First, indices.End - indices.First));
            }
        },
        iter: 300, threads: 1);

    private static IEnumerable<PageSpan> Pages((string Name, int Ranks, int Length) shards) => Enumerable.Range(0, shards.Ranks)
        .SelectMany(rank => ShardLayout.Parse(shards.Name).PagesOf(rank, shards.Ranks, shards.Length));
}
