using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>Holds a result against the float64 reference, by the rule of <see cref="VerificationRows"/>.</summary>
public static class Verification
{
    /// <summary>All rows are compared while rows × (keys + 1024) × (head_dim + value_dim) is not above this: about a second.</summary>
    public const long WorkOfAllRows = 1L << 28;

    /// <summary>Rows that are compared otherwise.</summary>
    public const int SampledRows = 64;

    /// <summary>Compares a whole result: all rows when small, seeded rows else.</summary>
    /// <param name="problem">Sizes, masks and biases.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim]</param>
    /// <param name="key">[batch, key_len, kv_heads, head_dim]</param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]</param>
    /// <param name="storage">What keys and values were stored as.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len]</param>
    /// <param name="seed">Of the sampled rows.</param>
    /// <param name="scales">Scales of f8e4m3 storage; 1 when null.</param>
    public static VerificationReport Check(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, ElementType storage,
        ReadOnlySpan<float> output, ReadOnlySpan<float> lse, int seed, KeyValueScales? scales = null) =>
        VerificationRows.Compute(problem, query, key, value, storage, seed, scales).Check(output, lse);

    /// <summary>The rows that are compared: all when that is little work, else 64 seeded ones with first and last queries among them.</summary>
    public static IReadOnlyList<AttentionRow> SampleRows(AttentionProblem problem, int seed)
    {
        AttentionShape shape = problem.Shape;
        long rows = (long)shape.Batch * shape.QueryHeads * shape.QueryLength;
        if (rows <= SampledRows || (double)rows * (shape.KeyLength + 1024) * (shape.HeadDim + shape.ValueDim) <= WorkOfAllRows)
        {
            return [.. Enumerable.Range(0, (int)rows).Select(index => RowAt(shape, index))];
        }

        var random = new Random(seed);
        var chosen = new SortedSet<long> { 0, rows - 1 };
        for (int i = 0; i < SampledRows / 8; i++)
        {
            long first = random.NextInt64(rows / shape.QueryLength) * shape.QueryLength;
            chosen.Add(first);
            chosen.Add(first + shape.QueryLength - 1);
        }

        while (chosen.Count < SampledRows)
        {
            chosen.Add(random.NextInt64(rows));
        }

        return [.. chosen.Select(index => RowAt(shape, index))];
    }

    private static AttentionRow RowAt(AttentionShape shape, long index)
    {
        long sequence = index / shape.QueryLength;
        return new AttentionRow(
            (int)(sequence / shape.QueryHeads), (int)(sequence % shape.QueryHeads), (int)(index % shape.QueryLength));
    }
}
