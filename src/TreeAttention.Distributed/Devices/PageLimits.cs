using System;

namespace TreeAttention.Distributed;

/// <summary>How large the numbers of one page and KV head are, scales included: decides whether fast fp32 arithmetic is exact enough.</summary>
/// <param name="LargestKeyNorm">Largest Euclidean norm of a key; NaN or ∞ when an element is not finite.</param>
/// <param name="LargestValue">Largest magnitude of a value element; NaN or ∞ when one is not finite.</param>
public readonly record struct PageLimits(float LargestKeyNorm, float LargestValue)
{
    /// <summary>Limits that also hold for a key as it is stored, times <paramref name="scale"/>.</summary>
    public PageLimits WithKey(ReadOnlySpan<float> key, float scale = 1f) => WithNorm(RowStorage.SumOfSquares(key) * scale * scale);

    /// <summary>Limits that also hold for a value as it is stored, times <paramref name="scale"/>.</summary>
    public PageLimits WithValue(ReadOnlySpan<float> value, float scale = 1f) =>
        this with { LargestValue = MathF.Max(LargestValue, RowStorage.LargestMagnitude(value) * scale) };

    /// <summary>Limits that also hold for a key of this sum of squares.</summary>
    internal PageLimits WithNorm(double squares)
    {
        // The sum of squares is exact to 1e-13, which the factor covers; narrowing must not lose what a bound needs.
        double bound = Math.Sqrt(squares) * (1 + 1e-12);
        float rounded = (float)bound;
        return this with { LargestKeyNorm = MathF.Max(LargestKeyNorm, rounded < bound ? MathF.BitIncrement(rounded) : rounded) };
    }
}
