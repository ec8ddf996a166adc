using System.Runtime.Intrinsics;
using TreeAttention.Devices;
using TreeAttention.Distributed;
using Xunit;

namespace TreeAttention.Tests;

/// <summary>A CPU device of each vector width against float64.</summary>
public abstract class CpuAgreementTests
{
    private const double Exact = 1e-5;

    // 1: a single lane; 15, 80: no multiple of a vector; 576: MLA.
    private static readonly int[] _headDims = [1, 15, 64, 80, 96, 128, 192, 256, 576];

    public static TheoryData<int> HeadDims => [.. _headDims];

    public static TheoryData<int> KeyLengths => [0, 1, 7, 63, 511, 512, 513, 1500];

    public static TheoryData<int, int> Groups => new()
    {
        { 1, 1 }, { 2, 1 }, { 3, 1 }, { 4, 2 }, { 5, 1 }, { 7, 1 }, { 8, 2 }, { 16, 1 }, { 1, 40 }, { 2, 50 }, { 3, 9 },
    };

    public static TheoryData<string, int> LayoutsOverRanks => new()
    {
        { "contiguous", 2 }, { "zigzag", 3 }, { "striped", 3 }, { "cyclic:16", 2 }, { "cyclic:5", 4 }, { "lanes", 3 },
    };

    internal abstract CpuDevice Create(int threads);

    [Theory, MemberData(nameof(HeadDims))]
    public void Every_head_dimension_agrees_with_float64(int headDim)
    {
        using CpuDevice device = Create(2);
        foreach (ElementType type in new[] { ElementType.Float32, ElementType.Float16, ElementType.BFloat16 })
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
    public void Every_key_length_agrees_with_float64(int keys)
    {
        using CpuDevice device = Create(3);
        foreach (int queries in new[] { 1, 33 })
        {
            CpuCase inputs = new CpuCase { Shape = new(2, queries, keys, 6, 2, 24, 40), Options = new() { Causal = true } }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Theory, MemberData(nameof(Groups))]
    public void Every_group_size_agrees_with_float64(int group, int queries)
    {
        using CpuDevice device = Create(2);
        CpuCase inputs = new CpuCase { Shape = new(2, queries, 600, 2 * group, 2, 72, 56), Options = new() { Causal = true } }.Fill();

        PartialResult actual = inputs.Run(device);

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
    }

    [Theory, MemberData(nameof(LayoutsOverRanks))]
    public void Every_layout_agrees_with_float64(string layout, int ranks)
    {
        using CpuDevice device = Create(2);
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

    [Theory, MemberData(nameof(CpuOptions.Names), MemberType = typeof(CpuOptions))]
    public void Every_option_agrees_with_float64(string name)
    {
        using CpuDevice device = Create(2);
        foreach (int queries in new[] { 1, 5, 45 })
        {
            AttentionShape shape = new(3, queries, 650, 6, 2, 48, 32);
            CpuCase inputs = new CpuCase { Shape = shape, Options = CpuOptions.Of(name, shape) }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, Exact);
        }
    }

    [Fact]
    public void Values_inside_keys_agree_with_float64()
    {
        using CpuDevice device = Create(2);
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

    [Fact]
    public void A_dropped_shard_is_no_agreement()
    {
        using CpuDevice device = Create(1);
        CpuCase inputs = new CpuCase { Shape = new(1, 1, 600, 4, 2, 32, 32), Ranks = 2 }.Fill();

        PartialResult half = inputs.RunRank(device, 0);

        Assert.True(half.ErrorAgainst(inputs.Expected()) > 1e-2);
    }

    [Fact]
    public void Fp32_holds_two_millionths_over_a_long_context()
    {
        using CpuDevice device = Create(1);
        foreach (int group in new[] { 1, 16 })
        {
            CpuCase inputs = new CpuCase { Shape = new(1, 1, 131_072, group, 1, 32, 16) }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 2e-6);
        }
    }
}

/// <summary>Vectors of 256 bits.</summary>
public sealed class Cpu256AgreementTests : CpuAgreementTests
{
    internal override CpuDevice Create(int threads) =>
        new(threads, (count, account) => new TileWorkers<Width256, Vector256<float>>(count, account));
}

/// <summary>Vectors of 512 bits; where the processor has none they are emulated, slowly and with the same results.</summary>
public sealed class Cpu512AgreementTests : CpuAgreementTests
{
    internal override CpuDevice Create(int threads) =>
        new(threads, (count, account) => new TileWorkers<Width512, Vector512<float>>(count, account));
}
