using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Verification;

/// <summary>Holds a result against the float64 reference, by the rule of <see cref="VerificationRows"/>.</summary>
internal static class Agreement
{
    /// <summary>All rows are compared while rows × (keys + 1024) × (head_dim + value_dim) is not above this: about a second.</summary>
    public const long WorkOfAllRows = 1L << 28;

    /// <summary>Rows that are compared otherwise.</summary>
    public const int SampledRows = 64;

    /// <summary>Compares a whole result: all rows when small, seeded rows else.</summary>
    /// <param name="call">Sizes, options, tensors, and what keys and values were stored as.</param>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len]</param>
    /// <param name="seed">Of the sampled rows.</param>
    public static VerificationReport Check(ReferenceCall call, ReadOnlySpan<float> output, ReadOnlySpan<float> lse, int seed) =>
        VerificationRows.Compute(call, seed).Check(output, lse);

    /// <summary>The rows that are compared: all when that is little work, else 64 seeded ones with first and last queries among them.</summary>
    public static IReadOnlyList<AttentionRow> SampleRows(AttentionShape shape, int seed)
    {
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

/// <summary>How far a result is from the reference.</summary>
/// <param name="ErrorMax">Largest error of the worst row, the one whose error is the largest part of its bound; +∞ where NaN or ∞ do not match.</param>
/// <param name="ErrorBound">What the error of that row may be.</param>
/// <param name="Wrong">Rows outside their bounds.</param>
/// <param name="Rows">Rows compared.</param>
/// <param name="WorstRow">Which row and number the error belongs to, and the reference beside it; null when no rows were compared.</param>
internal sealed record VerificationReport(double ErrorMax, double ErrorBound, long Wrong, int Rows, string? WorstRow);

/// <summary>The largest error among some numbers, and the two numbers that it lies between.</summary>
internal readonly record struct Deviation(double Error, double Actual, double Expected, int Index)
{
    /// <summary>The largest deviation of a row; +∞ where NaN or infinities do not match.</summary>
    public static Deviation Of(ReadOnlySpan<float> actual, ReadOnlySpan<double> expected)
    {
        var worst = new Deviation(-1, 0, 0, 0);
        for (int i = 0; i < actual.Length; i++)
        {
            double error = Distance(actual[i], expected[i]);
            worst = error > worst.Error ? new Deviation(error, actual[i], expected[i], i) : worst;
        }

        return worst;
    }

    /// <summary>
    /// The deviation of a log-sum-exp. One that fp32 cannot hold is the largest float of its sign; an overflown one may be +∞ or
    /// NaN; "no key", -∞, is only matched by itself.
    /// </summary>
    public static Deviation OfLogSumExp(float actual, double expected)
    {
        bool overflown = double.IsNaN(expected) || double.IsPositiveInfinity(expected);
        bool matches = float.IsNaN(actual) || float.IsPositiveInfinity(actual);
        double held = double.IsFinite(expected) ? Math.Clamp(expected, -float.MaxValue, float.MaxValue) : expected;
        double error = overflown ? (matches ? 0 : double.PositiveInfinity) : Distance(actual, held);
        return new Deviation(error, actual, expected, 0);
    }

    private static double Distance(double actual, double expected)
    {
        if (double.IsFinite(actual) && double.IsFinite(expected))
        {
            return Math.Abs(actual - expected);
        }

        return actual.Equals(expected) ? 0 : double.PositiveInfinity;
    }
}

/// <summary>One row as float64 has it, how large it is, and how far plain arithmetic in the storage type is off.</summary>
/// <param name="Row">Which row.</param>
/// <param name="Expected">[value_dim] the output.</param>
/// <param name="ExpectedLse">The log-sum-exp.</param>
/// <param name="Largest">Largest magnitude of the output.</param>
/// <param name="Magnitude">Largest weighted mean of |value|.</param>
/// <param name="NaiveOutputError">Largest output error of the naive computation; +∞ where that overflows.</param>
/// <param name="NaiveLseError">The same of the log-sum-exp.</param>
internal readonly record struct RowMeasure(
    AttentionRow Row, double[] Expected, double ExpectedLse, double Largest, double Magnitude,
    double NaiveOutputError, double NaiveLseError);
