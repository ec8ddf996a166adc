using System;

namespace TreeAttention.Distributed;

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

    /// <summary>The deviation of a log-sum-exp. An overflown one may be +∞ or NaN; "no key", -∞, is only matched by itself.</summary>
    public static Deviation OfLogSumExp(float actual, double expected)
    {
        bool overflown = double.IsNaN(expected) || double.IsPositiveInfinity(expected);
        bool matches = float.IsNaN(actual) || float.IsPositiveInfinity(actual);
        double error = overflown ? (matches ? 0 : double.PositiveInfinity) : Distance(actual, expected);
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

/// <summary>What was measured of one row: its deviations, how large it is, and how far plain arithmetic in the storage type is off.</summary>
/// <param name="Row">Which row.</param>
/// <param name="Output">Worst element of the output.</param>
/// <param name="LogSumExp">The log-sum-exp.</param>
/// <param name="Largest">Largest magnitude of the reference output.</param>
/// <param name="Magnitude">Largest weighted mean of |value|.</param>
/// <param name="NaiveOutputError">Largest output error of the naive computation; +∞ where that overflows.</param>
/// <param name="NaiveLseError">The same of the log-sum-exp.</param>
internal readonly record struct RowMeasure(
    AttentionRow Row, Deviation Output, Deviation LogSumExp, double Largest, double Magnitude,
    double NaiveOutputError, double NaiveLseError);
