using System;
using System.Linq;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Verification;

/// <summary>Rows of a result as float64 has them, computed once, against which any number of results is held.</summary>
/// <remarks>
/// f32: each number of a row lies within 1e-5 of the row's largest reference value, or of the smallest normal float where that is
/// larger: below it floats have a fixed step, and every merge may round by one. Where values cancel so far that this is
/// below what single precision can do, 2^-22 of the weighted mean of |value| counts instead. The log-sum-exp lies within
/// 1e-5 · max(1, |lse|).
/// f16, bf16 and eight bits: within twice the largest error of the naive computation in that type over the compared rows, plus 1e-5
/// (the largest of three: everything rounded, the inputs alone, keys and values alone; of a few scores, one rounding may undo the
/// other by chance, and such luck is no bound for who rounds less), and never further than 1e-2 of the row's own largest value; the log-sum-exp likewise, relative to max(1, |lse|). Where wider
/// keys or values are rounded for storage, no computation on what was stored can promise the 1e-2: there it gives way to
/// the naive computation's own share: twice the largest naive error relative to its row, and two units of roundoff of the
/// weighted mean of |value|, or of an integer's scale. Twice the naive error still holds.
/// -∞ is matched by -∞ alone, NaN by nothing but a NaN of the reference.
/// </remarks>
internal sealed class VerificationRows
{
    private const double Relative = 1e-5;
    private const double LimitOfNarrow = 1e-2;
    private const double SmallestNormal = 1.17549435082228751e-38; // 2^-126

    private static readonly NaiveRounding[] _roundings = [NaiveRounding.Everything, NaiveRounding.Inputs, NaiveRounding.Storage];

    private readonly AttentionShape _shape;
    private readonly RowMeasure[] _rows;
    private readonly double[] _outputBounds;
    private readonly double[] _lseBounds;

    private VerificationRows(AttentionShape shape, RowMeasure[] rows, ElementType storage, KeyValueScales? scales, bool rounded)
    {
        _shape = shape;
        _rows = rows;
        (double, double) naiveOutput = (
            rows.Select(measure => Finite(measure.NaiveOutputError)).DefaultIfEmpty().Max(),
            rows.Select(measure => Finite(measure.NaiveOutputError / measure.Largest)).DefaultIfEmpty().Max());
        double naiveLse = rows.Select(measure => Finite(measure.NaiveLseError)).DefaultIfEmpty().Max();
        _outputBounds = [.. rows.Select(measure => OutputBound(measure, storage, scales?.Value[measure.Row.Head / shape.GroupSize] ?? 1f, rounded, naiveOutput))];
        _lseBounds = [.. rows.Select(measure => LogSumExpBound(measure, storage, rounded, naiveLse))];
    }

    /// <summary>Computes all rows when that is little work, seeded rows else.</summary>
    /// <param name="call">Sizes, options, tensors, and what keys and values were stored as.</param>
    /// <param name="seed">Of the sampled rows.</param>
    public static VerificationRows Compute(ReferenceCall call, int seed) => new(
        call.Shape, [.. Agreement.SampleRows(call.Shape, seed).Select(row => Measure(call, row))], call.Storage, call.Scales,
        call.Key.Type != call.Storage || call.Value.Type != call.Storage);

    /// <summary>Compares a whole result.</summary>
    /// <param name="output">[batch, query_len, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, query_len]</param>
    public VerificationReport Check(ReadOnlySpan<float> output, ReadOnlySpan<float> lse)
    {
        long wrong = 0;
        var worst = new VerificationReport(0, 0, 0, _rows.Length, null);
        double worstRatio = -1;
        for (int i = 0; i < _rows.Length; i++)
        {
            RowMeasure measure = _rows[i];
            (int batch, int head, int index) = measure.Row;
            int place = (((batch * _shape.QueryLength) + index) * _shape.QueryHeads) + head;
            var outputDeviation = Deviation.Of(output.Slice(place * _shape.ValueDim, _shape.ValueDim), measure.Expected);
            var lseDeviation = Deviation.OfLogSumExp(
                lse[(((batch * _shape.QueryHeads) + head) * _shape.QueryLength) + index], measure.ExpectedLse);
            double ratio = Ratio(outputDeviation.Error, _outputBounds[i]);
            double lseRatio = Ratio(lseDeviation.Error, _lseBounds[i]);
            wrong += Math.Max(ratio, lseRatio) > 1 ? 1 : 0;
            if (Math.Max(ratio, lseRatio) > worstRatio)
            {
                worstRatio = Math.Max(ratio, lseRatio);
                (Deviation deviation, double limit, string number) = ratio >= lseRatio
                    ? (outputDeviation, _outputBounds[i], $"output[dim {outputDeviation.Index}]")
                    : (lseDeviation, _lseBounds[i], "lse");
                worst = worst with { ErrorMax = deviation.Error, ErrorBound = limit, WorstRow = Describe(measure.Row, number, deviation) };
            }
        }

        return worst with { Wrong = wrong };
    }

    private static RowMeasure Measure(ReferenceCall call, AttentionRow row)
    {
        double[] expected = new double[call.Shape.ValueDim];
        double[] magnitude = new double[call.Shape.ValueDim];
        ReferenceAttention.Row(call, row, expected, magnitude, out double expectedLse);
        double naiveError = 0;
        double naiveLseError = 0;
        if (call.Storage != ElementType.Float32)
        {
            float[] naive = new float[expected.Length];
            foreach (NaiveRounding rounding in _roundings)
            {
                NaiveAttention.Row(call, row, naive, out float naiveLse, rounding);
                naiveError = Math.Max(naiveError, Deviation.Of(naive, expected).Error);
                naiveLseError = Math.Max(naiveLseError, Deviation.OfLogSumExp(naiveLse, expectedLse).Error / Unit(expectedLse));
            }
        }

        return new RowMeasure(
            row, expected, expectedLse,
            Finite(Math.Abs(TensorPrimitives.MaxMagnitude<double>(expected))), Finite(TensorPrimitives.Max<double>(magnitude)),
            naiveError, naiveLseError);
    }

    // Where the naive computation overflows there is no twice its error, and the limit alone holds.
    private static double OutputBound(
        RowMeasure measure, ElementType storage, float scale, bool rounded, (double Absolute, double Relative) naive)
    {
        double floor = (measure.Magnitude * Math.ScaleB(1, -22)) + (Relative * SmallestNormal);
        if (storage == ElementType.Float32)
        {
            return Math.Max(Relative * measure.Largest, floor);
        }

        var type = StorageType.Of(storage);
        double roundoff = (type.RelativeRoundoff * measure.Magnitude) + (type.AbsoluteRoundoff * scale);
        double limit = LimitOfNarrow * measure.Largest;
        if (rounded)
        {
            limit = (Math.Max(LimitOfNarrow, 2 * naive.Relative) * measure.Largest) + (2 * roundoff);
        }

        return Math.Max(floor, Math.Min((2 * Math.Max(naive.Absolute, measure.NaiveOutputError)) + Relative, limit));
    }

    private static double LogSumExpBound(RowMeasure measure, ElementType storage, bool rounded, double naiveError)
    {
        double limit = Math.Max(LimitOfNarrow, rounded ? (2 * naiveError) + Relative : 0);
        double relative = storage == ElementType.Float32
            ? Relative
            : Math.Min((2 * Math.Max(naiveError, measure.NaiveLseError)) + Relative, limit);
        return relative * Unit(measure.ExpectedLse);
    }

    private static double Unit(double lse) => double.IsFinite(lse) ? Math.Max(1, Math.Abs(lse)) : 1;

    private static double Finite(double number) => double.IsFinite(number) ? number : 0;

    private static double Ratio(double error, double bound) => error == 0 ? 0 : error / bound;

    private static string Describe(AttentionRow row, string number, Deviation deviation) =>
        FormattableString.Invariant($"{row}: {number} is {deviation.Actual:G9}, the reference {deviation.Expected:G9}");
}
