using System;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Loading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Verification;

/// <summary>What attention is: one row at a time in double precision, slow and obvious. Everything else is judged by it.</summary>
public static class ReferenceAttention
{
    /// <summary>Output and log-sum-exp of one query and head, over all keys, sinks included.</summary>
    /// <param name="problem">Sizes, masks and biases.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim], any strides, any floating-point type.</param>
    /// <param name="key">[batch, key_len, kv_heads, head_dim]</param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="head">Query head.</param>
    /// <param name="i">The query's index in its sequence.</param>
    /// <param name="output">[value_dim]; 0 when the query sees no key.</param>
    /// <param name="lse">Natural logarithm; -∞ when the query sees no key and its head has no sink.</param>
    public static void Row(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, int batch, int head, int i,
        Span<double> output, out double lse) =>
        Row(problem, query, key, value, new AttentionRow(batch, head, i), output, new double[output.Length], out lse);

    /// <summary>The same, and the mean of |value| under the same weights: what rounding errors of the sum are proportional to.</summary>
    internal static void Row(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, AttentionRow row,
        Span<double> output, Span<double> magnitude, out double lse)
    {
        output.Clear();
        magnitude.Clear();
        lse = double.NegativeInfinity;
        if (row.Query >= problem.Mask.QueryLength(row.Batch))
        {
            return;
        }

        double[] scores = Scores(problem, query, key, row);
        double sink = problem.Options.Sinks?[row.Head] ?? double.NegativeInfinity;
        double top = sink;
        foreach (double score in scores)
        {
            top = Math.Max(top, score);
        }

        if (double.IsNegativeInfinity(top))
        {
            return;
        }

        var values = new TensorRows(value);
        double[] element = new double[output.Length];
        double whole = sink == top ? 1 : Math.Exp(sink - top); // a sink of +∞ leaves the keys nothing, and is no NaN
        for (int j = 0; j < scores.Length; j++)
        {
            if (double.IsNegativeInfinity(scores[j]))
            {
                continue;
            }

            double weight = Math.Exp(scores[j] - top); // a score of +∞ is one, as ∞ / ∞ is
            whole += weight;
            values.Read(row.Batch, j, row.Head / problem.Shape.GroupSize, element);
            TensorPrimitives.MultiplyAdd(element, weight, output, output);
            TensorPrimitives.Abs(element, element);
            TensorPrimitives.MultiplyAdd(element, weight, magnitude, magnitude);
        }

        TensorPrimitives.Divide(output, whole, output);
        TensorPrimitives.Divide(magnitude, whole, magnitude);
        lse = top + Math.Log(whole);
    }

    // One score for each key up to the end of what the query sees; -∞ where it does not see the key.
    private static double[] Scores(AttentionProblem problem, TensorView query, TensorView key, AttentionRow row)
    {
        KeyInterval visible = problem.Mask.Visible(row.Batch, row.Query);
        double[] scores = new double[visible.End];
        Array.Fill(scores, double.NegativeInfinity);
        double scale = problem.Scale;
        double softcap = problem.Options.Softcap;
        double[] queryRow = new double[problem.Shape.HeadDim];
        double[] keyRow = new double[problem.Shape.HeadDim];
        new TensorRows(query).Read(row.Batch, row.Query, row.Head, queryRow);
        var keys = new TensorRows(key);
        for (int j = visible.First; j < visible.End; j++)
        {
            if (!problem.Mask.KeepsInside(row.Batch, row.Query, j))
            {
                continue;
            }

            keys.Read(row.Batch, j, row.Head / problem.Shape.GroupSize, keyRow);
            double score = scale * TensorPrimitives.Dot<double>(queryRow, keyRow);
            score = softcap > 0 ? softcap * Math.Tanh(score / softcap) : score;
            scores[j] = score + problem.Mask.Bias(row.Batch, row.Head, row.Query, j);
        }

        return scores;
    }
}

/// <summary>One row of a result: the output and log-sum-exp of one query and one head.</summary>
/// <param name="Batch">Batch row.</param>
/// <param name="Head">Query head.</param>
/// <param name="Query">The query's index in its sequence.</param>
public readonly record struct AttentionRow(int Batch, int Head, int Query)
{
    /// <inheritdoc/>
    public override string ToString() => $"batch {Batch}, query {Query}, head {Head}";
}

/// <summary>Rotary embedding of a whole tensor in double precision: what rotated keys and queries are judged by.</summary>
public static class ReferenceRotary
{
    /// <summary>A rotated copy [batch, length, heads, dim] of float64 elements; whoever gets the memory frees it.</summary>
    /// <param name="tensor">[batch, length, heads, dim], any strides, any floating-point type.</param>
    /// <param name="options">Which dimensions turn, and how.</param>
    /// <param name="positionOf">Position of an index of the length axis.</param>
    /// <param name="rotated">The copy.</param>
    public static HostMemory Rotate(TensorView tensor, RotaryOptions options, Func<int, int> positionOf, out TensorView rotated)
    {
        var memory = new HostMemory(tensor.Count * sizeof(double), ElementType.Float64);
        rotated = new TensorView(tensor.Name, memory.Region.Address, ElementType.Float64, tensor.Shape);
        var rows = new TensorRows(tensor);
        (long length, long heads, int dim) = (tensor.Shape[1], tensor.Shape[2], (int)tensor.Shape[3]);
        double[] frequencies = options.Frequencies();
        var turns = new (double Sine, double Cosine)[frequencies.Length];
        for (long token = 0; token < tensor.Shape[0] * length; token++)
        {
            (int batch, int index) = ((int)(token / length), (int)(token % length));
            for (int pair = 0; pair < turns.Length; pair++)
            {
                turns[pair] = Math.SinCos(positionOf(index) * frequencies[pair]);
            }

            for (int head = 0; head < heads; head++)
            {
                Span<double> row = memory.Region.Slice(((token * heads) + head) * dim, dim).AsSpan<double>();
                for (int d = 0; d < dim; d++)
                {
                    row[d] = rows.Element(batch, index, head, d);
                }

                Turn(row, turns, options.Interleaved);
            }
        }

        return memory;
    }

    private static void Turn(Span<double> row, ReadOnlySpan<(double Sine, double Cosine)> turns, bool isInterleaved)
    {
        for (int pair = 0; pair < turns.Length; pair++)
        {
            ref double a = ref row[isInterleaved ? 2 * pair : pair];
            ref double b = ref row[isInterleaved ? (2 * pair) + 1 : turns.Length + pair];
            (double sine, double cosine) = turns[pair];
            (a, b) = ((a * cosine) - (b * sine), (b * cosine) + (a * sine));
        }
    }
}
