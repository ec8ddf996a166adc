using System;
using System.Linq;
using TreeAttention.Devices.Cuda;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cuda;

/// <summary>Finite numbers of any size, and numbers that are not finite, on a CUDA device: found and computed there, no host has a part in it.</summary>
[Collection(EmulatedGpu.Name)]
public sealed class CudaExtremeTests
{
    private static readonly float[] _scores = [1e3f, 1e6f, 1e12f, 1e30f, 1e38f];
    private static readonly double[] _spreads = [10, 1e4, 1e15];
    private static readonly ElementType[] _types = [ElementType.Float32, ElementType.BFloat16];
    private static readonly string[] _rules = ["tail mask", "low tail bias", "depth-first order"];

    public static TheoryData<float> EqualScores => [.. _scores];

    public static MatrixTheoryData<double, ElementType> Spreads => new(_spreads, _types);

    public static TheoryData<string> HidingRules => [.. _rules];

    [Theory, MemberData(nameof(EqualScores))]
    public void Equal_scores_give_the_mean_of_the_values(float score)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = new CpuCase { Shape = new(1, 3, 600, 4, 2, 16, 24), Options = new() { Scale = 1 }, Ranks = 2 }.Fill()
            .Change(inputs =>
            {
                Array.Fill(inputs.Query, MathF.Sqrt(score / 16));
                Array.Fill(inputs.Key, MathF.Sqrt(score / 16));
            });

        PartialResult actual = DeviceCall.Run(inputs, device);

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, score <= 1e30f ? 1e-5 : double.PositiveInfinity);
        Assert.Equal(inputs.Expected().Output.Max(), actual.Output.Max(), 1e-5f);
    }

    [Theory, MemberData(nameof(Spreads))]
    public void Large_scores_agree_with_float64(double spread, ElementType type)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = new CpuCase { Shape = new(1, 3, 600, 4, 2, 40, 24), Type = type, Options = new() { Causal = true } }.Fill(spread: spread);

        PartialResult actual = DeviceCall.Run(inputs, device);

        // Below the limit of 16-bit storage, tensor cores round queries and weights.
        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, type == ElementType.Float32 || spread > 1e3 ? 1e-5 : 0.2);
    }

    [Fact]
    public void Scores_a_little_beyond_the_limit_are_exact_in_every_storage_type()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        foreach ((ElementType type, float score) in new[] { (ElementType.Float32, 60f), (ElementType.Float16, 2500f), (ElementType.BFloat16, 2500f) })
        {
            CpuCase inputs = new CpuCase { Shape = new(1, 2, 300, 4, 2, 64, 40), Type = type, Options = new() { Scale = 1 } }.Fill()
                .Change(inputs =>
                {
                    Array.Fill(inputs.Key, 1f);
                    for (int i = 0; i < inputs.Query.Length; i++)
                    {
                        inputs.Query[i] = score / 64 * (1 + (0.003f * inputs.Query[i]));
                    }
                });

            PartialResult actual = DeviceCall.Run(inputs, device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 1e-5);
        }
    }

    [Fact]
    public void Scores_beyond_fp32_pick_the_largest()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = new CpuCase { Shape = new(1, 3, 600, 4, 2, 40, 24), Ranks = 3 }.Fill(spread: 3e37);

        PartialResult actual = DeviceCall.Run(inputs, device);

        PartialResult expected = inputs.Expected();
        Assert.All(actual.Output.Zip(expected.Output), pair => Assert.Equal(pair.Second, pair.First, 1e-5f));
    }

    [Theory]
    [InlineData(ElementType.Float32, float.MaxValue)]
    [InlineData(ElementType.BFloat16, 3.3e38f)]
    [InlineData(ElementType.Float16, 65504f)]
    public void The_largest_finite_values_stay_finite(ElementType type, float largest)
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase inputs = new CpuCase { Shape = new(1, 2, 1100, 4, 2, 32, 32), Type = type, Ranks = 2 }.Fill()
            .Change(inputs => Array.Fill(inputs.Value, largest));

        PartialResult actual = DeviceCall.Run(inputs, device);

        Assert.All(actual.Output, value => Assert.Equal(largest, value, largest * 5e-3f));
    }

    [Theory, MemberData(nameof(HidingRules))]
    public void Slopes_are_exact_where_the_near_keys_are_hidden(string rule)
    {
        const int Queries = 3;
        const int Tail = 300;
        using CudaDevice device = EmulatedCuda.CreateDevice();
        var options = new AttentionOptions { AlibiSlopes = [1, 0.5f, 5, 1] };
        options = rule switch
        {
            "tail mask" => options with { TailMask = new bool[Queries * Tail], TailMaskLength = Tail },
            "low tail bias" => options with { TailBias = [.. Enumerable.Repeat(-1e5f, Queries * Tail)], TailBiasLength = Tail },
            _ => options with
            {
                DfsStart = [.. Enumerable.Repeat(1, Queries)],
                DfsEnd = [.. Enumerable.Range(0, 600).Select(key => key < 600 - Tail ? 1 : 0)],
            },
        };
        CpuCase inputs = new CpuCase { Shape = new(1, Queries, 600, 4, 2, 40, 24), Options = options }.Fill();

        PartialResult actual = DeviceCall.Run(inputs, device);

        Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 5e-6);
    }

    [Theory]
    [InlineData(ElementType.Float32, "value")]
    [InlineData(ElementType.BFloat16, "key")]
    [InlineData(ElementType.Float32, "infinite key")]
    public void What_is_not_finite_reaches_the_rows_that_see_it_and_no_others(ElementType type, string where)
    {
        const int Poisoned = 560;
        const int Queries = 60;
        using CudaDevice device = EmulatedCuda.CreateDevice();
        AttentionShape shape = new(2, Queries, 600, 4, 2, 15, 9);
        CpuCase inputs = new CpuCase { Shape = shape, Type = type, Options = new() { Causal = true } }.Fill();
        PartialResult clean = inputs.Expected();
        int key = (3 * shape.KeyLength) + Poisoned;
        inputs.Change(poisoned =>
        {
            float[] target = where == "value" ? poisoned.Value : poisoned.Key;
            int width = where == "value" ? shape.ValueDim : shape.HeadDim;
            target.AsSpan(key * width, width).Fill(where == "infinite key" ? float.PositiveInfinity : float.NaN);
        });

        PartialResult actual = DeviceCall.Run(inputs, device);

        for (int row = 0; row < inputs.Rows; row++)
        {
            bool sees = row / Queries / shape.QueryHeads == 1 && row / Queries % shape.QueryHeads >= 2
                && (row % Queries) + shape.KeyLength - Queries >= Poisoned;
            float[] found = actual.Row(row).ToArray();
            if (sees)
            {
                Assert.True(found.All(value => !float.IsFinite(value) || where == "infinite key"), $"row {row}");
            }
            else
            {
                float furthest = found.Zip(clean.Row(row).ToArray()).Max(pair => MathF.Abs(pair.First - pair.Second));
                Assert.True(furthest < (type == ElementType.Float32 ? 1e-5f : 2e-2f), $"row {row}: {furthest}");
            }
        }
    }

    [Fact]
    public void Queries_written_over_are_measured_anew()
    {
        using CudaDevice device = EmulatedCuda.CreateDevice();
        CpuCase quiet = new CpuCase { Shape = new(1, 2, 100, 2, 1, 32, 32) }.Fill();
        CpuCase loud = new CpuCase { Shape = quiet.Shape }.Fill().Change(inputs => Array.Fill(inputs.Query, 1e6f));
        using var call = new DeviceCall(quiet, device);
        using var other = new DeviceCall(loud, device);
        call.Attend();

        device.Copy(other.Queries.Values, call.Queries.Values);
        PartialResult actual = call.Attend();

        Assert.Equal(other.Attend().Output, actual.Output);
        Assert.InRange(actual.ErrorAgainst(loud.Expected()), 0, 1e-5);
    }
}
