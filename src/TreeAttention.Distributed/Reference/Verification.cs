using System;
using System.Collections.Generic;
using System.Linq;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed;

/// <summary>Holds a result against the float64 reference: flash-attn's rule, with an absolute limit that it lacks.</summary>
/// <remarks>
/// f32: each number of a row lies within 1e-5 of the row's largest reference value. Where values cancel so far that this is
/// below what single precision can do, 2^-22 of the weighted mean of |value| counts instead. The log-sum-exp lies within
/// 1e-5 · max(1, |lse|).
/// f16, bf16: within twice the largest error of the naive computation in that type over the compared rows, plus 1e-5, and
/// never further than 1e-2 of the row's own largest value; the log-sum-exp likewise, relative to max(1, |lse|). Where wider
/// keys or values are rounded for storage, no computation on what was stored can promise the 1e-2: there it gives way to
/// the naive computation's own share: twice the largest naive error relative to its row, and two units of roundoff of the
/// weighted mean of |value|. Twice the naive error still holds.
/// -∞ is matched by -∞ alone, NaN by nothing but a NaN of the reference.
/// </remarks>
public static class Verification
{
    /// <summary>All rows are compared while rows × (keys + 1024) × (head_dim + value_dim) is not above this: about a second.</summary>
    public const long WorkOfAllRows = 1L << 28;

    /// <summary>Rows that are compared otherwise.</summary>
    public const int SampledRows = 64;

    private const double Relative = 1e-5;
    private const double LimitOf16Bits = 1e-2;

    /// <summary>Compares a whole result: all rows when small, seeded rows else.</summary>
    /// <param name="problem">Sizes, masks and biases.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim]</param>
    /// <param name="key">[batch, key_len, kv_heads, head_dim]</param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]</param>
    /// <param name="storage">What keys and values were stored as.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len]</param>
    /// <param name="seed">Of the sampled rows.</param>
    public static VerificationReport Check(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, ElementType storage,
        ReadOnlySpan<float> output, ReadOnlySpan<float> lse, int seed)
    {
        AttentionShape shape = problem.Shape;
        IReadOnlyList<AttentionRow> rows = SampleRows(problem, seed);
        float[] outputs = new float[rows.Count * shape.ValueDim];
        float[] logSumExps = new float[rows.Count];
        for (int i = 0; i < rows.Count; i++)
        {
            (int batch, int head, int index) = rows[i];
            int place = (((batch * shape.QueryLength) + index) * shape.QueryHeads) + head;
            output.Slice(place * shape.ValueDim, shape.ValueDim).CopyTo(outputs.AsSpan(i * shape.ValueDim));
            logSumExps[i] = lse[(((batch * shape.QueryHeads) + head) * shape.QueryLength) + index];
        }

        return Check(problem, query, key, value, storage, rows, outputs, logSumExps);
    }

    /// <summary>Compares the given rows.</summary>
    /// <param name="problem">Sizes, masks and biases.</param>
    /// <param name="query">[batch, query_len, query_heads, head_dim]</param>
    /// <param name="key">[batch, key_len, kv_heads, head_dim]</param>
    /// <param name="value">[batch, key_len, kv_heads, value_dim]</param>
    /// <param name="storage">What keys and values were stored as.</param>
    /// <param name="rows">Which rows.</param>
    /// <param name="output">[rows, value_dim]</param>
    /// <param name="lse">[rows]</param>
    public static VerificationReport Check(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, ElementType storage,
        IReadOnlyList<AttentionRow> rows, ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        var measures = new List<RowMeasure>(rows.Count);
        int dim = problem.Shape.ValueDim;
        for (int i = 0; i < rows.Count; i++)
        {
            measures.Add(Measure(problem, query, key, value, storage, rows[i], output.Slice(i * dim, dim), lse[i]));
        }

        bool rounded = key.Type != storage || value.Type != storage;
        (double, double) naiveOutput = (
            measures.Select(measure => Finite(measure.NaiveOutputError)).DefaultIfEmpty().Max(),
            measures.Select(measure => Finite(measure.NaiveOutputError / measure.Largest)).DefaultIfEmpty().Max());
        double naiveLse = measures.Select(measure => Finite(measure.NaiveLseError)).DefaultIfEmpty().Max();
        long wrong = 0;
        var worst = new VerificationReport(0, 0, 0, rows.Count, null);
        double worstRatio = -1;
        foreach (RowMeasure measure in measures)
        {
            double bound = OutputBound(measure, storage, rounded, naiveOutput);
            double lseBound = LogSumExpBound(measure, storage, rounded, naiveLse);
            double ratio = Ratio(measure.Output.Error, bound);
            double lseRatio = Ratio(measure.LogSumExp.Error, lseBound);
            wrong += Math.Max(ratio, lseRatio) > 1 ? 1 : 0;
            if (Math.Max(ratio, lseRatio) > worstRatio)
            {
                worstRatio = Math.Max(ratio, lseRatio);
                (Deviation deviation, double limit, string number) = ratio >= lseRatio
                    ? (measure.Output, bound, $"output[dim {measure.Output.Index}]")
                    : (measure.LogSumExp, lseBound, "lse");
                worst = worst with { ErrorMax = deviation.Error, ErrorBound = limit, WorstRow = Describe(measure.Row, number, deviation) };
            }
        }

        return worst with { Wrong = wrong };
    }

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

    private static RowMeasure Measure(
        AttentionProblem problem, TensorView query, TensorView key, TensorView value, ElementType storage,
        AttentionRow row, ReadOnlySpan<float> output, float lse)
    {
        double[] expected = new double[output.Length];
        double[] magnitude = new double[output.Length];
        ReferenceAttention.Row(problem, query, key, value, row, expected, magnitude, out double expectedLse);
        double naiveError = 0;
        double naiveLseError = 0;
        if (storage != ElementType.Float32)
        {
            float[] naive = new float[output.Length];
            NaiveAttention.Row(problem, query, key, value, storage, row, naive, out float naiveLse);
            naiveError = Deviation.Of(naive, expected).Error;
            naiveLseError = Deviation.OfLogSumExp(naiveLse, expectedLse).Error / Unit(expectedLse);
        }

        return new RowMeasure(
            row, Deviation.Of(output, expected), Deviation.OfLogSumExp(lse, expectedLse),
            Finite(Math.Abs(TensorPrimitives.MaxMagnitude<double>(expected))), Finite(TensorPrimitives.Max<double>(magnitude)),
            naiveError, naiveLseError);
    }

    // Where the naive computation overflows there is no twice its error, and the limit alone holds. The smallest float is
    // added because nothing smaller can be told apart.
    private static double OutputBound(
        RowMeasure measure, ElementType storage, bool rounded, (double Absolute, double Relative) naive)
    {
        double floor = (measure.Magnitude * Math.ScaleB(1, -22)) + float.Epsilon;
        if (storage == ElementType.Float32)
        {
            return Math.Max(Relative * measure.Largest, floor);
        }

        double roundoff = storage == ElementType.Float16 ? Math.ScaleB(1, -11) : Math.ScaleB(1, -8);
        double limit = LimitOf16Bits * measure.Largest;
        if (rounded)
        {
            limit = (Math.Max(LimitOf16Bits, 2 * naive.Relative) * measure.Largest) + (2 * roundoff * measure.Magnitude);
        }

        return Math.Max(floor, Math.Min((2 * Math.Max(naive.Absolute, measure.NaiveOutputError)) + Relative, limit));
    }

    private static double LogSumExpBound(RowMeasure measure, ElementType storage, bool rounded, double naiveError)
    {
        double limit = Math.Max(LimitOf16Bits, rounded ? (2 * naiveError) + Relative : 0);
        double relative = storage == ElementType.Float32
            ? Relative
            : Math.Min((2 * Math.Max(naiveError, measure.NaiveLseError)) + Relative, limit);
        return relative * Unit(measure.LogSumExp.Expected);
    }

    private static double Unit(double lse) => double.IsFinite(lse) ? Math.Max(1, Math.Abs(lse)) : 1;

    private static double Finite(double number) => double.IsFinite(number) ? number : 0;

    private static double Ratio(double error, double bound) => error == 0 ? 0 : error / bound;

    private static string Describe(AttentionRow row, string number, Deviation deviation) =>
        FormattableString.Invariant($"{row}: {number} is {deviation.Actual:G9}, the reference {deviation.Expected:G9}");
}
