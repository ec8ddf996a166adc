using System;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;
using Xunit;

namespace TreeAttention.Tests.Devices.Cpu;

/// <summary>Finite numbers of any size, and numbers that are not finite.</summary>
public sealed class CpuExtremeTests
{
    private static readonly int[] _queryCounts = [1, 37];
    private static readonly float[] _scores = [1e2f, 1e3f, 1e6f, 1e12f, 1e30f, 1e38f];
    private static readonly double[] _spreads = [3, 10, 100, 1e4, 1e8, 1e15];
    private static readonly string[] _types = ["f32", "bf16"];
    private static readonly string[] _hidingRules = ["tail mask", "tail bias", "low tail bias", "depth-first order"];
    private static readonly string[] _poisons = ["key", "value", "infinite key"];

    public static TheoryData<int, float> EqualScores => [.. CpuWidths.All.SelectMany(bits =>
        _scores.Select(score => new TheoryDataRow<int, float>(bits, score)))];

    [Theory, MemberData(nameof(EqualScores))]
    public void Equal_scores_give_the_mean_of_the_values(int bits, float score)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 700, 4, 2, 16, 24), Options = new() { Scale = 1 } }.Fill()
                .Change(inputs =>
                {
                    Array.Fill(inputs.Query, MathF.Sqrt(score / 16));
                    Array.Fill(inputs.Key, MathF.Sqrt(score / 16));
                });

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, score <= 1e30f ? 1e-5 : double.PositiveInfinity);
            Assert.Equal(inputs.Expected().Output.Max(), actual.Output.Max(), 1e-5f);
        }
    }

    public static TheoryData<int, double, string> Spreads => [.. CpuWidths.All.SelectMany(bits =>
        _spreads.SelectMany(spread =>
            _types.Select(type => new TheoryDataRow<int, double, string>(bits, spread, type))))];

    [Theory, MemberData(nameof(Spreads))]
    public void Large_scores_agree_with_float64(int bits, double spread, string type)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase
            {
                Shape = new(1, queries, 700, 4, 2, 40, 24),
                Type = type == "f32" ? ElementType.Float32 : ElementType.BFloat16,
                Options = new() { Causal = true },
            }.Fill(spread: spread);

            PartialResult actual = inputs.Run(device);

            // Storage has rounded 16-bit keys already: their fp32 scores may be off by more.
            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, type == "f32" ? 1e-5 : 1e-3);
        }
    }

    // All keys and queries point one way, so that every score is near the limit of fp32 dot products and none is rounded away.
    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Long_dot_products_that_all_add_up_stay_exact(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach ((int queries, int headDim, float score) in new[] { (1, 128, 47f), (64, 64, 47f), (64, 128, 30f), (64, 576, 47f), (64, 576, 70f) })
        {
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 600, 4, 2, headDim, 64), Options = new() { Scale = 1 } }.Fill()
                .Change(inputs =>
                {
                    float unit = MathF.Sqrt(score / headDim);
                    foreach (float[] vectors in new[] { inputs.Query, inputs.Key })
                    {
                        for (int i = 0; i < vectors.Length; i++)
                        {
                            vectors[i] = unit * (1 + (0.003f * vectors[i]));
                        }
                    }
                });

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 1e-5);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void Scores_beyond_fp32_pick_the_largest(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 700, 4, 2, 40, 24), Ranks = 3 }.Fill(spread: 3e37);

            PartialResult actual = inputs.Run(device);

            PartialResult expected = inputs.Expected();
            for (int i = 0; i < actual.Output.Length; i++)
            {
                Assert.Equal(expected.Output[i], actual.Output[i], 1e-5f);
            }
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void The_largest_finite_values_stay_finite(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 1100, 4, 2, 32, 32), Ranks = 3 }.Fill()
                .Change(inputs => Array.Fill(inputs.Value, float.MaxValue));

            PartialResult actual = inputs.Run(device);

            Assert.All(actual.Output, value => Assert.Equal(float.MaxValue, value, float.MaxValue * 1e-6f));
        }
    }

    public static TheoryData<int, string> HidingRules => [.. CpuWidths.All.SelectMany(bits =>
        _hidingRules.Select(rule => new TheoryDataRow<int, string>(bits, rule)))];

    [Theory, MemberData(nameof(HidingRules))]
    public void Slopes_are_exact_where_the_near_keys_are_hidden(int bits, string rule)
    {
        const int Tail = 600;
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in _queryCounts)
        {
            var options = new AttentionOptions { AlibiSlopes = [1, 0.5f, 5, 1] };
            options = rule switch
            {
                "tail mask" => options with { TailMask = new bool[queries * Tail], TailMaskLength = Tail },
                "tail bias" => options with { TailBias = [.. Enumerable.Repeat(float.NegativeInfinity, queries * Tail)], TailBiasLength = Tail },
                "low tail bias" => options with { TailBias = [.. Enumerable.Repeat(-1e5f, queries * Tail)], TailBiasLength = Tail },
                _ => options with
                {
                    DfsStart = [.. Enumerable.Repeat(1, queries)],
                    DfsEnd = [.. Enumerable.Range(0, 1100).Select(key => key < 1100 - Tail ? 1 : 0)],
                },
            };
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 1100, 4, 2, 40, 24), Options = options }.Fill();

            PartialResult actual = inputs.Run(device);

            Assert.InRange(actual.ErrorAgainst(inputs.Expected()), 0, 5e-6);
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_batch_of_no_rows_has_no_lanes(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        CpuCase inputs = new CpuCase { Shape = new(0, 3, 1100, 4, 2, 8, 8), Layout = ShardLayout.Lanes }.Fill();
        using var call = new CpuCall(inputs, device, 0);

        PartialResult actual = Assert.Single(call.AttendLanes([.. LaneTree.NodesOf(0, 1)]));

        Assert.Empty(actual.Output);
    }

    public static TheoryData<int, string> Poisons => [.. CpuWidths.All.SelectMany(bits =>
        _poisons.Select(where => new TheoryDataRow<int, string>(bits, where)))];

    [Theory, MemberData(nameof(Poisons))]
    public void What_is_not_finite_reaches_the_rows_that_see_it_and_no_others(int bits, string where)
    {
        const int Poisoned = 600;
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 2, 300 })
        {
            // Head dimension 15 makes vector loads reach from one head's keys into the next one's.
            AttentionShape shape = new(2, queries, 700, 4, 2, 15, 9);
            CpuCase clean = new CpuCase { Shape = shape, Options = new() { Causal = true } }.Fill();
            PartialResult before = clean.Run(device);
            int key = ((1 * shape.KvHeads) + 1) * shape.KeyLength + Poisoned;
            clean.Change(inputs =>
            {
                float[] target = where == "value" ? inputs.Value : inputs.Key;
                int width = where == "value" ? shape.ValueDim : shape.HeadDim;
                target.AsSpan(key * width, width).Fill(where == "infinite key" ? float.PositiveInfinity : float.NaN);
            });

            PartialResult after = clean.Run(device);

            for (int row = 0; row < clean.Rows; row++)
            {
                bool sees = row / queries / shape.QueryHeads == 1 && row / queries % shape.QueryHeads >= 2
                    && (row % queries) + shape.KeyLength - queries >= Poisoned;
                ReadOnlySpan<float> actual = after.Row(row);
                if (sees)
                {
                    Assert.True(actual.ToArray().All(value => !float.IsFinite(value) || where == "infinite key"), $"row {row}");
                }
                else
                {
                    Assert.True(before.Row(row).SequenceEqual(actual), $"row {row}");
                }
            }
        }
    }

    [Theory, MemberData(nameof(CpuWidths.Bits), MemberType = typeof(CpuWidths))]
    public void A_nan_query_reaches_its_own_row_alone(int bits)
    {
        using CpuDevice device = CpuWidths.Create(bits, 2);
        foreach (int queries in new[] { 1, 60 })
        {
            CpuCase inputs = new CpuCase { Shape = new(1, queries, 600, 4, 1, 20, 12) }.Fill();
            PartialResult before = inputs.Run(device);
            int row = 2 * queries;
            inputs.Query[(row * 20) + 3] = float.NaN;

            PartialResult after = inputs.Run(device);

            for (int other = 0; other < inputs.Rows; other++)
            {
                Assert.True(
                    other == row ? after.Row(other).ToArray().All(float.IsNaN) : before.Row(other).SequenceEqual(after.Row(other)),
                    $"row {other}");
            }
        }
    }
}
