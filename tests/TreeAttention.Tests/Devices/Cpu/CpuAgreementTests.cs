using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>A CPU device of each vector width against float64.</summary>
public sealed class CpuAgreementTests
{
    private const double Exact = 1e-5;

    // 1: a single lane; 15, 80: no multiple of a vector; 576: MLA.
    private static readonly int[] _headDims = [1, 15, 64, 80, 96, 128, 192, 256, 576];

    private static readonly int[] _keyLengths = [0, 1, 7, 63, 511, 512, 513, 1500];

    private static readonly (int Group, int Queries)[] _groups =
        [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1), (7, 1), (8, 2), (16, 1), (1, 40), (2, 50), (3, 9)];

    private static readonly (string Layout, int Ranks)[] _layouts =
        [("contiguous", 2), ("zigzag", 3), ("striped", 3), ("cyclic:16", 2), ("cyclic:5", 4), ("lanes", 3)];

    public static MatrixTheoryData<int, int> HeadDims => new(CpuWidths.All, _headDims);

    public static MatrixTheoryData<int, int> KeyLengths => new(CpuWidths.All, _keyLengths);

    public static TheoryData<int, int, int> Groups =>
        [.. CpuWidths.All.SelectMany(bits => _groups.Select(g => new TheoryDataRow<int, int, int>(bits, g.Group, g.Queries)))];

    public static TheoryData<int, string, int> LayoutsOverRanks =>
        [.. CpuWidths.All.SelectMany(bits => _layouts.Select(l => new TheoryDataRow<int, string, int>(bits, l.Layout, l.Ranks)))];

    public static MatrixTheoryData<int, string> Options => new(CpuWidths.All, CpuOptions.Names);

    public static MatrixTheoryData<int, string> PackedOptions => new(CpuWidths.All, CpuOptions.PackedNames);

    [Theory, MemberData(nameof(HeadDims))]
    public void Every_head_dimension_agrees_with_float64(int bits, int headDim)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (ElementType type in new[] { ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3 })
        {
            foreach (int queries in new[] { 1, 30 })
            {
                CpuCase inputs = new CpuCase { Shape = new(1, queries, 200, 4, 2, headDim, headDim == 576 ? 512 : headDim), Type = type }.Fill();

                PartialResult actual = inputs.Run(device);

                Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
            }
        }
    }

    [Theory, MemberData(nameof(KeyLengths))]
    public void Every_key_length_agrees_with_float64(int bits, int keys)
    {
        using CpuDevice device = CpuWidths.Create(bits, 3);
        foreach (int queries in new[] { 1, 33 })
        {
            CpuCase inputs = new CpuCase { Shape = new(2, queries, keys, 6, 2, 24, 40), Options = new() { Causal = true } }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(Groups))]
    public void Every_group_size_agrees_with_float64(int bits, int group, int queries)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        CpuCase inputs = new CpuCase { Shape = new(2, queries, 600, 2 * group, 2, 72, 56), Options = new() { Causal = true } }.Fill();

        PartialResult actual = inputs.Run(device);

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
    }

    [Theory, MemberData(nameof(LayoutsOverRanks))]
    public void Every_layout_agrees_with_float64(int bits, string layout, int ranks)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 2, 70 })
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(2, queries, 1100, 4, 2, 32, 32),
                Options = new() { Causal = true, WindowLeft = 700, AlibiSlopes = [0.5f, 0.25f, 0.01f, -0.001f] },
                Layout = ShardLayout.Parse(layout),
                Ranks = ranks,
            }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(Options))]
    public void Every_option_agrees_with_float64(int bits, string name)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 1, 5, 45 })
        {
            AttentionShape shape = new(3, queries, 650, 6, 2, 48, 32);
            CpuCase inputs = new CpuCase { Shape = shape, Options = CpuOptions.Of(name, shape) }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(PackedOptions))]
    public void Packed_sequences_agree_with_float64(int bits, string name)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach ((int queries, int keys) in new[] { (4, 40), (61, 700), (90, 33) })
        {
            AttentionShape shape = new(1, queries, keys, 6, 2, 48, 32);
            CpuCase inputs = new CpuCase { Shape = shape, Options = CpuOptions.OfPacked(name, shape), Layout = ShardLayout.Striped, Ranks = 2 }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Values_inside_keys_agree_with_float64(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int heads in new[] { 3, 40 })
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(2, 1, 700, heads, 1, 576, 512),
                Type = ElementType.BFloat16,
                ValuesInKeys = true,
            }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_dropped_shard_is_no_agreement(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 1);
        CpuCase inputs = new CpuCase { Shape = new(1, 1, 600, 4, 2, 32, 32), Ranks = 2 }.Fill();

        PartialResult half = inputs.RunRank(device, 0);

        Assert.True(half.ErrorAgainst(inputs.Expected()) > 1e-2);
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Fp32_holds_two_millionths_over_a_long_context(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 1);
        foreach (int group in new[] { 1, 16 })
        {
            CpuCase inputs = new CpuCase { Shape = new(1, 1, 131_072, group, 1, 32, 16) }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 2e-6);
        }
    }
}
