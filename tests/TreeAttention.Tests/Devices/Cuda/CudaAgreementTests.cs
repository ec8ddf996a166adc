using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>The CUDA device over the emulated GPU against float64.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaAgreementTests
{
    // 15 and 80: no multiple of a tensor-core tile; 64, 128: tiles as they are.
    private static readonly int[] _headDims = [15, 64, 80, 128];

    // Around a tile of 32 and 64 keys, and a page of 512.
    private static readonly int[] _keyLengths = [0, 1, 31, 65, 513];

    private static readonly (int Group, int Queries)[] _groups = [(1, 1), (4, 2), (3, 9), (2, 33)];

    private static readonly (string Layout, int Ranks)[] _layouts = [("contiguous", 2), ("zigzag", 3), ("striped", 3), ("cyclic:5", 2), ("lanes", 2)];

    public static MatrixTheoryData<ElementType, int> HeadDims => new([ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3, ElementType.Int8], _headDims);

    public static MatrixTheoryData<ElementType, int> KeyLengths => new([ElementType.Float32, ElementType.BFloat16], _keyLengths);

    public static TheoryData<int, int> Groups => [.. _groups.Select(g => new TheoryDataRow<int, int>(g.Group, g.Queries))];

    public static TheoryData<string, int> LayoutsOverRanks => [.. _layouts.Select(l => new TheoryDataRow<string, int>(l.Layout, l.Ranks))];

    public static TheoryData<string> Options => [.. CpuOptions.Names];

    public static TheoryData<string> PackedOptions => [.. CpuOptions.PackedNames];

    [Theory, MemberData(nameof(HeadDims))]
    public void Every_type_and_head_dimension_agrees_with_float64(ElementType type, int headDim)
    {
        CpuCase inputs = new CpuCase { Shape = new(1, 2, 100, 4, 2, headDim, headDim), Type = type }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(KeyLengths))]
    public void Every_key_length_agrees_with_float64(ElementType type, int keys)
    {
        CpuCase inputs = new CpuCase { Shape = new(2, 2, keys, 4, 2, 64, 40), Type = type, Options = new() { Causal = true } }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(Groups))]
    public void Every_number_of_query_rows_agrees_with_float64(int group, int queries)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, queries, 130, 2 * group, 2, 64, 64),
            Type = ElementType.Float16,
            Options = new() { Causal = true },
        }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(LayoutsOverRanks))]
    public void Every_layout_agrees_with_float64(string layout, int ranks)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, 2, 1100, 4, 2, 32, 32),
            Type = ElementType.BFloat16,
            Options = new() { Causal = true, WindowLeft = 700, AlibiSlopes = [0.5f, 0.25f, 0.01f, -0.001f] },
            Layout = ShardLayout.Parse(layout),
            Ranks = ranks,
        }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(Options))]
    public void Every_option_agrees_with_float64(string name)
    {
        AttentionShape shape = new(3, 3, 150, 4, 2, 32, 32);
        CpuCase inputs = new CpuCase { Shape = shape, Options = CpuOptions.Of(name, shape) }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(PackedOptions))]
    public void Packed_sequences_agree_with_float64(string name)
    {
        AttentionShape shape = new(1, 41, 150, 4, 2, 32, 32);
        foreach (ElementType type in new[] { ElementType.Float32, ElementType.BFloat16 })
        {
            CpuCase inputs = new CpuCase { Shape = shape, Type = type, Options = CpuOptions.OfPacked(name, shape) }.Fill();

            RequireAgreement(inputs);
        }
    }

    // 160 rows of a KV head: a whole tile of attend_prefill and a part of one.
    [Theory, MemberData(nameof(Options))]
    public void Every_option_agrees_with_float64_over_the_rows_of_a_prefill(string name)
    {
        AttentionShape shape = new(3, 40, 150, 8, 2, 32, 32);
        CpuCase inputs = new CpuCase { Shape = shape, Type = ElementType.BFloat16, Options = CpuOptions.Of(name, shape) }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(PackedOptions))]
    public void Packed_sequences_agree_with_float64_over_the_rows_of_a_prefill(string name)
    {
        AttentionShape shape = new(1, 100, 150, 4, 2, 32, 32);
        CpuCase inputs = new CpuCase { Shape = shape, Type = ElementType.BFloat16, Options = CpuOptions.OfPacked(name, shape) }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, MemberData(nameof(LayoutsOverRanks))]
    public void Every_layout_agrees_with_float64_over_the_rows_of_a_prefill(string layout, int ranks)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, 70, 600, 4, 2, 64, 64),
            Type = ElementType.BFloat16,
            Options = new() { Causal = true, WindowLeft = 300 },
            Layout = ShardLayout.Parse(layout),
            Ranks = ranks,
        }.Fill();

        RequireAgreement(inputs);
    }

    [Theory]
    [InlineData(ElementType.Float8E4M3, 1, 0.013f, 0.01f)]
    [InlineData(ElementType.Float8E4M3, 40, 0.013f, 0.01f)]
    [InlineData(ElementType.Int8, 1, 0.03f, 0.04f)]
    [InlineData(ElementType.Int8, 40, 0.03f, 0.04f)]
    public void Scales_of_each_head_agree_with_float64(ElementType type, int queries, float keyScale, float valueScale)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, queries, 100, 4, 2, 64, 48),
            Type = type,
            Scales = new([keyScale, 0.4f], [1.7f, valueScale]),
            Options = new() { Causal = true },
        }.Fill();

        RequireAgreement(inputs);
    }

    [Theory, InlineData(ElementType.Float8E4M3, 1f), InlineData(ElementType.Int8, 8f)]
    public void Enormous_scores_of_scaled_keys_agree_with_float64(ElementType type, float coarseness)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, 2, 100, 4, 2, 40, 24),
            Type = type,
            Scales = new([0.3f * coarseness, 0.4f * coarseness], [0.25f, 1f]),
        }.Fill(spread: 60);

        RequireAgreement(inputs);
    }

    [Theory, InlineData(ElementType.Float8E4M3), InlineData(ElementType.Int8)]
    public void Scaled_values_inside_keys_agree_with_float64(ElementType type)
    {
        CpuCase inputs = new CpuCase
        {
            Shape = new(1, 1, 70, 16, 1, 576, 512),
            Type = type,
            ValuesInKeys = true,
            Scales = new([0.04f], [0.04f]),
        }.Fill();

        RequireAgreement(inputs);
    }

    [Fact]
    public void Values_inside_keys_agree_with_float64()
    {
        CpuCase inputs = new CpuCase { Shape = new(1, 1, 70, 16, 1, 576, 512), Type = ElementType.BFloat16, ValuesInKeys = true }.Fill();

        RequireAgreement(inputs);
    }

    [Fact]
    public void A_dropped_shard_swapped_heads_and_an_off_by_one_are_no_agreement()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        AttentionShape shape = new(1, 3, 120, 4, 2, 64, 64);
        CpuCase right = new CpuCase { Shape = shape, Type = ElementType.BFloat16, Options = new() { Causal = true } }.Fill();
        CpuCase half = new CpuCase { Shape = shape, Type = ElementType.BFloat16, Options = new() { Causal = true }, Ranks = 2 }.Fill();
        CpuCase late = new CpuCase { Shape = shape, Type = ElementType.BFloat16, Options = new() { WindowRight = 1 } }.Fill();
        using var dropped = new DeviceCall(half, device, rank: 1);
        PartialResult expected = right.Expected();

        var errors = new List<double>
        {
            dropped.Attend().ErrorAgainst(expected),
            DeviceCall.Run(late, device).ErrorAgainst(expected),
            DeviceCall.Run(right.Change(inputs => inputs.Value.AsEnumerable().Reverse().ToArray().CopyTo(inputs.Value, 0)), device).ErrorAgainst(expected),
        };

        Assert.All(errors, error => Assert.True(error > 2 * ToleranceOf(ElementType.BFloat16), $"{error} passes for agreement"));
    }

    // fp32 is exact to its rounding; queries and weights are rounded to the storage type on tensor cores.
    private static double ToleranceOf(ElementType type) => type switch
    {
        ElementType.Float32 => 1e-5,
        ElementType.Float16 or ElementType.Float8E4M3 => 2e-3,
        _ => 1.5e-2,
    };

    private static void RequireAgreement(CpuCase inputs)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();

        PartialResult actual = DeviceCall.Run(inputs, device);

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, ToleranceOf(inputs.Type));
    }
}
