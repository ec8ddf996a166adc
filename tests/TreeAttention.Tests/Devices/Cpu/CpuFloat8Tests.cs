using System;
using System.Linq;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>Keys and values stored as f8e4m3, with scales of each KV head.</summary>
public sealed class CpuFloat8Tests
{
    private const double Exact = 1e-5;

    private static readonly int[] _queryCounts = [1, 3, 50]; // rows one by one, four together, a panel

    [Fact]
    public unsafe void Every_element_is_widened_to_its_value_by_vectors_of_both_widths()
    {
        byte[] all = [.. Enumerable.Range(0, 256).Select(encoded => (byte)encoded), .. new byte[16]];
        float[] values = new float[256];
        ElementConversion.ToFloat(all.AsSpan(0, 256), ElementType.Float8E4M3, values);
        fixed (byte* source = all)
        {
            for (int first = 0; first < 256; first += 16)
            {
                Vector512<float> wide = Width512.LoadE4M3(source + first);
                for (int i = 0; i < 16; i++)
                {
                    Vector256<float> narrow = Width256.LoadE4M3(source + first + (i / 8 * 8));
                    Vector256<float> exact = Float8E4M3Element.LoadExact(source + first + (i / 8 * 8));
                    float expected = values[first + i];
                    Assert.Equal(float.IsNaN(expected) ? 480 : expected, float.IsNaN(expected) ? MathF.Abs(wide[i]) : wide[i]);
                    Assert.Equal(wide[i], narrow[i % 8]);
                    Assert.Equal(first + i >= 128, float.IsNegative(wide[i]));
                    Assert.Equal(expected, exact[i % 8]);
                }
            }
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Scales_of_each_head_agree_with_float64(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = Case(queries, ranks: 2).Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Swapped_scales_are_no_agreement(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        CpuCase right = Case(3).Fill();
        foreach (KeyValueScales wrong in new[]
        {
            new KeyValueScales([.. right.Scales!.Key.Reverse()], right.Scales.Value),
            new KeyValueScales(right.Scales.Key, [.. right.Scales.Value.Reverse()]),
        })
        {
            using var call = new CpuCall(right, device, 0, wrong); // stored by the right scales

            call.Attend();

            Assert.True(call.Read().ErrorAgainst(right.Expected()) > 0.1);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Subnormal_elements_count(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(1, queries, 300, 4, 2, 64, 48),
                Type = ElementType.Float8E4M3,
                Scales = new([256f, 512f], [128f, 300f]), // ordinary numbers take the eight smallest steps
            }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
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
                Type = ElementType.Float8E4M3,
                ValuesInKeys = true,
                Scales = new([0.02f], [0.02f]),
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
                Type = ElementType.Float8E4M3,
                Scales = new([0.3f, 0.4f], [1e30f, 1f]),
            }.Fill(spread: 60).Change(inputs => inputs.Value.AsSpan(0, 700 * 24).Fill(448e30f));

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
            CpuCase inputs = Case(queries, new() { WindowRight = 0 }).Fill()
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
            Type = ElementType.Float8E4M3,
            Scales = new([0.1f, 0.03f], [0.5f, 0.02f]),
            Layout = ShardLayout.Lanes,
        }.Fill();
        using var call = new CpuCall(inputs, device, 0);

        PartialResult actual = call.AttendLanes([new LaneNode(0, LaneTree.Lanes)])[0];

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
    }

    private static CpuCase Case(int queries, AttentionOptions? options = null, int ranks = 1) => new()
    {
        Shape = new(1, queries, 300, 4, 2, 72, 48),
        Type = ElementType.Float8E4M3,
        Options = options ?? new(),
        Scales = new([0.013f, 0.4f], [1.7f, 0.01f]),
        Ranks = ranks,
    };
}
