using System;
using System.Numerics.Tensors;

namespace TreeAttention.Verification;

/// <summary>One attention call as plain inputs: all that a reference needs, none of it made by the runtime.</summary>
/// <param name="Shape">Sizes.</param>
/// <param name="Options">Masks and biases; valid for the sizes.</param>
/// <param name="Query">[batch, query_len, query_heads, head_dim], any strides, any floating-point type.</param>
/// <param name="Key">[batch, key_len, kv_heads, head_dim]</param>
/// <param name="Value">[batch, key_len, kv_heads, value_dim]</param>
/// <param name="Storage">What keys and values were stored as: the bounds of a comparison follow from it, the reference does not.</param>
/// <param name="Scales">Scales of storage that has some; 1 when null.</param>
internal sealed record ReferenceCall(
    AttentionShape Shape, AttentionOptions Options, TensorView Query, TensorView Key, TensorView Value,
    ElementType Storage = ElementType.Float32, KeyValueScales? Scales = null)
{
    /// <summary>Factor on query·key.</summary>
    internal double Scale => Options.Scale ?? (1.0 / Math.Sqrt(Shape.HeadDim));

    /// <summary>The KV head that a query head reads: neighbouring query heads share one.</summary>
    internal int KvHeadOf(int head) => head / (Shape.QueryHeads / Shape.KvHeads);
}

/// <summary>What attention is: one row at a time in double precision, slow and obvious. Everything else is judged by it.</summary>
internal static class ReferenceAttention
{
    /// <summary>Output and log-sum-exp of one query and head, over all keys, sinks included.</summary>
    /// <param name="call">Sizes, options and tensors.</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="head">Query head.</param>
    /// <param name="i">The query's index on the query axis.</param>
    /// <param name="output">[value_dim]; 0 when the query sees no key.</param>
    /// <param name="lse">In the base of the options; -∞ when the query sees no key and its head has no sink.</param>
    public static void Row(ReferenceCall call, int batch, int head, int i, Span<double> output, out double lse) =>
        Row(call, new AttentionRow(batch, head, i), output, new double[output.Length], out lse);

    /// <summary>The same, and the mean of |value| under the same weights: what rounding errors of the sum are proportional to.</summary>
    internal static void Row(ReferenceCall call, AttentionRow row, Span<double> output, Span<double> magnitude, out double lse)
    {
        output.Clear();
        magnitude.Clear();
        lse = double.NegativeInfinity;
        var rules = new ReferenceRules(call.Shape, call.Options, row.Batch, row.Query);
        if (!rules.IsPresent)
        {
            return;
        }

        double[] scores = Scores(call, rules, row);
        double sink = call.Options.Sinks?[row.Head] ?? double.NegativeInfinity;
        double top = sink;
        foreach (double score in scores)
        {
            top = Math.Max(top, score);
        }

        if (double.IsNegativeInfinity(top))
        {
            return;
        }

        var values = new TensorNumbers(call.Value);
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
            values.Read(row.Batch, j, call.KvHeadOf(row.Head), element);
            TensorPrimitives.MultiplyAdd(element, weight, output, output);
            TensorPrimitives.Abs(element, element);
            TensorPrimitives.MultiplyAdd(element, weight, magnitude, magnitude);
        }

        TensorPrimitives.Divide(output, whole, output);
        TensorPrimitives.Divide(magnitude, whole, magnitude);
        lse = top + Math.Log(whole);
        lse = call.Options.LseBase == LogarithmBase.Two ? lse / Math.Log(2) : lse;
    }

    // One score for each key of the axis; -∞ where the query does not see the key.
    private static double[] Scores(ReferenceCall call, ReferenceRules rules, AttentionRow row)
    {
        double[] scores = new double[call.Shape.KeyLength];
        double softcap = call.Options.Softcap;
        double[] query = new double[call.Shape.HeadDim];
        double[] key = new double[call.Shape.HeadDim];
        new TensorNumbers(call.Query).Read(row.Batch, row.Query, row.Head, query);
        var keys = new TensorNumbers(call.Key);
        for (int j = 0; j < scores.Length; j++)
        {
            scores[j] = double.NegativeInfinity;
            if (rules.Sees(j))
            {
                keys.Read(row.Batch, j, call.KvHeadOf(row.Head), key);
                double score = call.Scale * TensorPrimitives.Dot<double>(query, key);
                score = softcap > 0 ? softcap * Math.Tanh(score / softcap) : score;
                scores[j] = score + rules.Bias(row.Head, j);
            }
        }

        return scores;
    }
}

/// <summary>One row of a result: the output and log-sum-exp of one query and one head.</summary>
/// <param name="Batch">Batch row.</param>
/// <param name="Head">Query head.</param>
/// <param name="Query">The query's index on the query axis.</param>
internal readonly record struct AttentionRow(int Batch, int Head, int Query)
{
    /// <inheritdoc/>
    public override string ToString() => $"batch {Batch}, query {Query}, head {Head}";
}
