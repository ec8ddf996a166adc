using System;
using System.Linq;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>Keys and values stored as symmetric int8, with scales of each KV head.</summary>
public sealed class CpuInt8Tests
{
    private const double Exact = 1e-5;

    private static readonly int[] _queryCounts = [1, 3, 50]; // rows one by one, four together, a panel

    public static MatrixTheoryData<int, int> Groups => new(CpuWidths.All, [1, 2, 3, 4, 8, 16]);

    public static MatrixTheoryData<int, int> HeadDims => new(CpuWidths.All, [15, 16, 17, 33, 64, 96, 127, 128, 192, 256]);

    [Fact]
    public unsafe void Every_element_is_widened_to_its_value_by_vectors_of_both_widths()
    {
        byte[] all = [.. Enumerable.Range(0, 256).Select(encoded => (byte)encoded), .. new byte[16]];
        fixed (byte* source = all)
        {
            for (int first = 0; first < 256; first += 16)
            {
                Vector512<float> wide = Int8Element.Load<Width512, Vector512<float>>(source + first);
                for (int i = 0; i < 16; i++)
                {
                    Vector256<float> narrow = Int8Element.Load<Width256, Vector256<float>>(source + first + (i / 8 * 8));
                    Vector256<float> exact = Int8Element.LoadExact(source + first + (i / 8 * 8));
                    float expected = (sbyte)(byte)(first + i);
                    Assert.Equal(expected, wide[i]);
                    Assert.Equal(expected, narrow[i % 8]);
                    Assert.Equal(expected == -128 ? float.NaN : expected, exact[i % 8]);
                }
            }
        }
    }

    [Theory, MemberData(nameof(Groups))]
    public void Every_group_of_heads_agrees_with_float64(int bits, int group)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = Case(queries, group, 72, ranks: 2).Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(HeadDims))]
    public void Every_head_dimension_agrees_with_float64(int bits, int headDim)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = Case(queries, 2, headDim).Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Scales_of_another_head_or_forgotten_ones_are_no_agreement(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        CpuCase right = Case(3, 2, 72).Fill();
        foreach (KeyValueScales wrong in new[]
        {
            new KeyValueScales([.. right.Scales!.Key.Reverse()], right.Scales.Value),
            new KeyValueScales(right.Scales.Key, [.. right.Scales.Value.Reverse()]),
            new KeyValueScales([1f, 1f], right.Scales.Value),
            new KeyValueScales(right.Scales.Key, [1f, 1f]),
        })
        {
            using var call = new CpuCall(right, device, 0, wrong); // stored by the right scales

            call.Attend();

            Assert.True(call.Read().ErrorAgainst(right.Expected()) > 0.1);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Values_inside_keys_have_the_keys_scale(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int heads in new[] { 3, 40 })
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(2, 1, 700, heads, 1, 576, 512),
                Type = ElementType.Int8,
                ValuesInKeys = true,
                Scales = new([0.04f], [0.04f]),
            }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Enormous_scores_and_values_agree_with_float64(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(1, queries, 700, 4, 2, 40, 24),
                Type = ElementType.Int8,
                Scales = new([3f, 4f], [1e30f, 1f]),
            }.Fill(spread: 60).Change(inputs => inputs.Value.AsSpan(0, 700 * 24).Fill(127e30f));

            PartialResult actual = inputs.Run(device);

            // Scores below the limit are fp32 sums of up to 2048.
            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 1e-3);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_NaN_reaches_the_rows_that_see_it_and_no_other(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = Case(queries, 2, 72, new() { WindowRight = 0 }).Fill()
                .Change(inputs => inputs.Value[(299 * 48) + 5] = float.NaN); // the last key of the first KV head

            PartialResult actual = inputs.Run(device);

            Assert.All(Enumerable.Range(0, 4 * queries), row =>
                Assert.Equal(row < 2 * queries && row % queries == queries - 1, float.IsNaN(actual.Row(row)[5])));
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Lanes_fold_to_the_same_numbers(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, 2, 2000, 4, 2, 32, 16),
            Type = ElementType.Int8,
            Scales = new([0.05f, 0.04f], [0.1f, 0.04f]),
            Layout = ShardLayout.Lanes,
        }.Fill();
        using var call = new CpuCall(inputs, device, 0);

        PartialResult actual = call.AttendLanes([new LaneNode(0, LaneTree.Lanes)])[0];

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
    }

    // Values of 48, scales that let the largest of normal numbers saturate in one head and take a few steps in the other.
    private static CpuCase Case(int queries, int group, int headDim, AttentionOptions? options = null, int ranks = 1) => new()
    {
        Shape = new(1, queries, 300, 2 * group, 2, headDim, 48),
        Type = ElementType.Int8,
        Options = options ?? new(),
        Scales = new([0.023f, 0.3f], [0.5f, 0.025f]),
        Ranks = ranks,
    };
}
