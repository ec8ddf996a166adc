using System;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Devices;
using TreeAttention.Testing.Partials;

namespace TreeAttention.Testing.Cases;

/// <summary>One attention call with made-up inputs, sharded over ranks as a device sees it, and its float64 result.</summary>
internal sealed class CpuCase
{
    internal required AttentionShape Shape { get; init; }

    internal AttentionOptions Options { get; init; } = new();

    internal ElementType Type { get; init; } = ElementType.Float32;

    /// <summary>Scales of storage that has some.</summary>
    internal KeyValueScales? Scales { get; init; }

    internal bool ValuesInKeys { get; init; }

    internal ShardLayout Layout { get; init; } = ShardLayout.Contiguous;

    internal int Ranks { get; init; } = 1;

    /// <summary>[batch, query_heads, query_len, head_dim]</summary>
    internal float[] Query { get; private set; } = [];

    /// <summary>[batch, kv_heads, key_len, head_dim]</summary>
    internal float[] Key { get; private set; } = [];

    /// <summary>[batch, kv_heads, key_len, value_dim]</summary>
    internal float[] Value { get; private set; } = [];

    /// <summary>The shard of a rank as it is stored.</summary>
    internal ShardPlan PlanOf(int rank) => new(Shape, Layout.PagesOf(rank, Ranks, Shape.KeyLength), Type, ValuesInKeys, Scales);

    internal AttentionProblem Problem => new(Shape, Options);

    internal int Rows => Shape.Batch * Shape.QueryHeads * Shape.QueryLength;

    /// <summary>Fills the inputs with normal numbers of the given spread, rounded to the storage type.</summary>
    internal CpuCase Fill(int seed = 7, double spread = 1)
    {
        var random = new Random(seed);
        Query = Normal(random, Rows * Shape.HeadDim, spread);
        Key = Rounded(Normal(random, Shape.Batch * Shape.KvHeads * Shape.KeyLength * Shape.HeadDim, spread), Shape.HeadDim, Scales?.Key);
        Value = Rounded(Normal(random, Shape.Batch * Shape.KvHeads * Shape.KeyLength * Shape.ValueDim, 1), Shape.ValueDim, Scales?.Value);
        return Tie();
    }

    /// <summary>Changes the inputs, then makes values a part of the keys again where they are.</summary>
    internal CpuCase Change(Action<CpuCase> change)
    {
        change(this);
        return Tie();
    }

    /// <summary>The same call over some of its tokens, of one batch row with as many queries as keys.</summary>
    internal CpuCase OfTokens(int[] tokens, AttentionOptions options) => new()
    {
        Shape = Shape with { QueryLength = tokens.Length, KeyLength = tokens.Length },
        Options = options,
        Type = Type,
        Query = Take(Query, Shape.QueryHeads, Shape.HeadDim, tokens),
        Key = Take(Key, Shape.KvHeads, Shape.HeadDim, tokens),
        Value = Take(Value, Shape.KvHeads, Shape.ValueDim, tokens),
    };

    /// <summary>Attention on a device, all ranks one after the other, their partials merged.</summary>
    internal PartialResult Run(CpuDevice device)
    {
        var whole = new PartialResult(Rows, Shape.ValueDim);
        for (int rank = 0; rank < Ranks; rank++)
        {
            whole.Fold(RunRank(device, rank));
        }

        return whole;
    }

    /// <summary>Attention of one rank's shard.</summary>
    internal PartialResult RunRank(CpuDevice device, int rank)
    {
        using var call = new CpuCall(this, device, rank);
        call.Attend();
        return call.Read();
    }

    /// <summary>Attention in float64 through the mask's scalar rules, one row after the other.</summary>
    internal PartialResult Expected()
    {
        AttentionProblem problem = Problem;
        var result = new PartialResult(Rows, Shape.ValueDim);
        for (int row = 0; row < Rows; row++)
        {
            int i = row % Shape.QueryLength;
            int head = row / Shape.QueryLength % Shape.QueryHeads;
            int batch = row / Shape.QueryLength / Shape.QueryHeads;
            int keys = ((batch * Shape.KvHeads) + (head / Shape.GroupSize)) * Shape.KeyLength;
            var seen = Enumerable.Range(0, Shape.KeyLength).Where(j => problem.Mask.Keeps(batch, i, j)).ToList();
            var scores = seen.Select(j => Score(problem, row, keys + j, batch, head, i, j)).ToList();
            double max = scores.Count == 0 ? double.NegativeInfinity : scores.Max();
            if (double.IsNegativeInfinity(max))
            {
                continue;
            }

            double sum = 0;
            double[] output = new double[Shape.ValueDim];
            for (int n = 0; n < seen.Count; n++)
            {
                double weight = Math.Exp(scores[n] - max);
                sum += weight;
                for (int e = 0; e < Shape.ValueDim; e++)
                {
                    output[e] += weight * Value[((keys + seen[n]) * Shape.ValueDim) + e];
                }
            }

            for (int e = 0; e < Shape.ValueDim; e++)
            {
                result.Output[(row * Shape.ValueDim) + e] = (float)(output[e] / sum);
            }

            result.LogSum[row] = max + Math.Log(sum);
        }

        return result;
    }

    private float[] Take(float[] values, int heads, int dim, int[] tokens) =>
    [
        .. Enumerable.Range(0, heads).SelectMany(head => tokens.SelectMany(token =>
            values.AsSpan(((head * Shape.QueryLength) + token) * dim, dim).ToArray())),
    ];

    private static float[] Normal(Random random, int count, double spread)
    {
        float[] values = new float[count];
        for (int i = 0; i < count; i++)
        {
            double normal = Math.Sqrt(-2 * Math.Log(1 - random.NextDouble())) * Math.Cos(2 * Math.PI * random.NextDouble());
            values[i] = (float)(normal * spread);
        }

        return values;
    }

    private float[] Rounded(float[] values, int dim, float[]? scales)
    {
        for (int i = 0; i < values.Length; i++)
        {
            values[i] = StoredValues.Round(values[i], Type, scales?[i / (Shape.KeyLength * dim) % Shape.KvHeads] ?? 1f);
        }

        return values;
    }

    private double Score(AttentionProblem problem, int row, int key, int batch, int head, int i, int j)
    {
        double dot = 0;
        for (int e = 0; e < Shape.HeadDim; e++)
        {
            dot += (double)Query[(row * Shape.HeadDim) + e] * Key[(key * Shape.HeadDim) + e];
        }

        double score = dot * problem.Scale;
        if (Options.Softcap > 0)
        {
            score = Options.Softcap * Math.Tanh(score / Options.Softcap);
        }

        return score + problem.Mask.Bias(batch, head, i, j);
    }

    private CpuCase Tie()
    {
        for (int key = 0; ValuesInKeys && key < Value.Length / Shape.ValueDim; key++)
        {
            Key.AsSpan(key * Shape.HeadDim, Shape.ValueDim).CopyTo(Value.AsSpan(key * Shape.ValueDim));
        }

        return this;
    }
}
