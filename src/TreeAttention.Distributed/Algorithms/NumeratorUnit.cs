using System;

namespace TreeAttention.Distributed;

/// <summary>What a weight of 1 counts in a sum of numerators, so that the sum of all keys' values stays finite.</summary>
internal static class NumeratorUnit
{
    private const float Roomy = 1.7e38f; // half of the largest float: rounding may add, but not overflow

    /// <summary>1 where keys × the largest value is far below the largest float, else a power of two that makes it so.</summary>
    /// <remarks>Values whose limits are unknown or not finite may be as large as floats get.</remarks>
    public static float For(ShardMap shards)
    {
        float largest = 0;
        for (int rank = 0; rank < shards.Ranks; rank++)
        {
            foreach (PageLimits limits in shards.LimitsOf(rank))
            {
                largest = MathF.Max(largest, limits.LargestValue); // NaN stays NaN
            }
        }

        double bound = (float.IsFinite(largest) ? largest : float.MaxValue) * (double)Math.Max(1, shards.Shape.KeyLength);
        return bound <= Roomy ? 1f : (float)Math.ScaleB(1.0, -(int)Math.Ceiling(Math.Log2(bound / Roomy)));
    }
}
