using System;

namespace TreeAttention.Testing.Partials;

/// <summary>A partial in managed memory, with the log-sum-exp of each row.</summary>
internal sealed class PartialResult(int rows, int valueDim)
{
    // A row of one or two elements may cancel to nothing; no rounding is relative to that.
    private const double SmallestRow = 0.05;

    internal float[] Output { get; } = new float[rows * valueDim];

    internal float[] Max { get; } = Filled(rows);

    internal float[] Sum { get; } = new float[rows];

    internal double[] LogSum { get; } = Array.ConvertAll(Filled(rows), max => (double)max);

    internal int ValueDim => valueDim;

    internal static PartialResult Of(PartialAttention partial)
    {
        var result = new PartialResult(partial.Rows, partial.ValueDim);
        partial.Output.CopyTo(result.Output);
        partial.Max.CopyTo(result.Max);
        partial.Sum.CopyTo(result.Sum);
        result.FindLogSum();
        return result;
    }

    internal void Fold(PartialResult other)
    {
        PartialMerge.Fold(Output, Max, Sum, other.Output, other.Max, other.Sum, valueDim);
        FindLogSum();
    }

    /// <summary>The rows of some queries, in every head; there are so many queries a head.</summary>
    internal PartialResult OfQueries(int[] queries, int queryLength)
    {
        var result = new PartialResult(rows / queryLength * queries.Length, valueDim);
        for (int row = 0; row < result.LogSum.Length; row++)
        {
            int from = (row / queries.Length * queryLength) + queries[row % queries.Length];
            Row(from).CopyTo(result.Output.AsSpan(row * valueDim));
            (result.Max[row], result.Sum[row]) = (Max[from], Sum[from]);
        }

        result.FindLogSum();
        return result;
    }

    internal ReadOnlySpan<float> Row(int row) => Output.AsSpan(row * valueDim, valueDim);

    /// <summary>Largest error of any row, relative to the row's own largest value; log-sum-exps count relative to max(1, |lse|).</summary>
    internal double ErrorAgainst(PartialResult expected)
    {
        double worst = 0;
        for (int row = 0; row < rows; row++)
        {
            double largest = SmallestRow;
            double error = 0;
            for (int e = 0; e < valueDim; e++)
            {
                (double actual, double right) = (Output[(row * valueDim) + e], expected.Output[(row * valueDim) + e]);
                largest = Math.Max(largest, Math.Abs(right));
                error = Math.Max(error, actual == right ? 0 : Math.Abs(actual - right));
            }

            double lse = LogSum[row] == expected.LogSum[row] ? 0
                : Math.Abs(LogSum[row] - expected.LogSum[row]) / Math.Max(1, Math.Abs(expected.LogSum[row]));
            worst = Math.Max(worst, Math.Max(error == 0 ? 0 : error / largest, lse));
        }

        return worst;
    }

    private static float[] Filled(int rows)
    {
        float[] values = new float[rows];
        Array.Fill(values, float.NegativeInfinity);
        return values;
    }

    private void FindLogSum()
    {
        for (int row = 0; row < rows; row++)
        {
            LogSum[row] = Sum[row] == 0 ? double.NegativeInfinity : Max[row] + Math.Log(Sum[row]);
        }
    }
}
