using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>What the bits of a result may depend on.</summary>
public sealed class CpuBitsTests
{
    private static readonly (int Ranks, int Threads)[] _worlds = [(1, 1), (1, 3), (2, 2), (3, 1), (5, 2), (8, 1)];

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Attending_twice_gives_the_same_bits(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 3);
        CpuCase inputs = new CpuCase { Shape = new(1, 1, 20_000, 4, 1, 32, 32) }.Fill();
        using var call = new CpuCall(inputs, device, 0);
        call.Attend();
        PartialResult first = call.Read();

        call.Attend();

        AssertSame(first, call.Read());
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_depth_first_chain_and_a_causal_tail_mask_give_the_bits_of_plain_causal(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 3, 90 })
        {
            AttentionShape shape = new(2, queries, 700, 4, 2, 40, 24);
            int shift = shape.KeyLength - queries;
            AttentionOptions[] options = new[]
            {
                new AttentionOptions { Causal = true },
                new AttentionOptions
                {
                    DfsStart = [.. Enumerable.Range(0, 2 * queries).Select(n => (n % queries) + shift)],
                    DfsEnd = [.. Enumerable.Repeat(shape.KeyLength - 1, 2 * shape.KeyLength)],
                },
                new AttentionOptions
                {
                    TailMask = [.. Enumerable.Range(0, 2 * queries * 100).Select(n => 700 - 100 + (n % 100) <= (n / 100 % queries) + shift)],
                    TailMaskLength = 100,
                },
            };

            PartialResult[] results = [.. options.Select(option => new CpuCase { Shape = shape, Options = option }.Fill().Run(device))];

            AssertSame(results[0], results[1]);
            AssertSame(results[0], results[2]);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Lanes_give_the_same_bits_on_any_number_of_ranks_and_threads(int bits)
    {
        foreach (int queries in new[] { 1, 40 })
        {
            CpuCase? first = null;
            PartialResult? expected = null;
            foreach ((int ranks, int threads) in _worlds)
            {
                CpuCase inputs = new CpuCase
                {
                    Shape = new(2, queries, 140_000 / queries, 4, 2, 8, 8),
                    Layout = ShardLayout.Lanes,
                    Ranks = ranks,
                    Options = new() { Causal = true, KeyLengths = [140_000 / queries, 3000] },
                }.Fill();

                PartialResult whole = FoldTree(inputs, bits, threads);

                first ??= inputs;
                expected ??= whole;
                AssertSame(expected, whole);
            }

            Assert.InRange(expected!.ErrorAgainst(first!.Expected()), 0, 1e-5);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Lane_bits_do_not_depend_on_the_other_batch_rows(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 1, 100 })
        {
            CpuCase both = new CpuCase { Shape = new(2, queries, 2000, 4, 2, 24, 16), Layout = ShardLayout.Lanes }.Fill();
            CpuCase alone = new CpuCase { Shape = new(1, queries, 2000, 4, 2, 24, 16), Layout = ShardLayout.Lanes }.Fill().Change(one =>
            {
                both.Query.AsSpan(0, one.Query.Length).CopyTo(one.Query);
                both.Key.AsSpan(0, one.Key.Length).CopyTo(one.Key);
                both.Value.AsSpan(0, one.Value.Length).CopyTo(one.Value);
            });

            PartialResult whole = FoldTree(both, device);
            PartialResult single = FoldTree(alone, device);

            Assert.Equal(single.Output, whole.Output.Take(single.Output.Length));
            Assert.Equal(single.Sum, whole.Sum.Take(single.Sum.Length));
        }
    }

    private static PartialResult FoldTree(CpuCase inputs, int bits, int threads)
    {
        using CpuDevice device = CpuWidths.Create(bits, threads);
        return FoldTree(inputs, device);
    }

    private static PartialResult FoldTree(CpuCase inputs, CpuDevice device)
    {
        var nodes = new List<(LaneNode Node, PartialResult State)>();
        for (int rank = 0; rank < inputs.Ranks; rank++)
        {
            using var call = new CpuCall(inputs, device, rank);
            IReadOnlyList<LaneNode> ours = LaneTree.NodesOf(rank, inputs.Ranks);
            nodes.AddRange(ours.Zip(call.AttendLanes(ours)));
        }

        // Siblings are folded until one node is left.
        while (nodes.Count > 1)
        {
            int left = Enumerable.Range(0, nodes.Count - 1).First(n =>
                nodes[n].Node.Size == nodes[n + 1].Node.Size && nodes[n].Node.First % (2 * nodes[n].Node.Size) == 0);
            nodes[left].State.Fold(nodes[left + 1].State);
            nodes[left] = (new LaneNode(nodes[left].Node.First, 2 * nodes[left].Node.Size), nodes[left].State);
            nodes.RemoveAt(left + 1);
        }

        return nodes[0].State;
    }

    private static void AssertSame(PartialResult expected, PartialResult actual)
    {
        Assert.Equal(expected.Output, actual.Output);
        Assert.Equal(expected.Max, actual.Max);
        Assert.Equal(expected.Sum, actual.Sum);
    }
}
