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
