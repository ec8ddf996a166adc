using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Layout;

/// <summary>Keys and values of one shard in a device's memory: a plan, its bytes, and how large its numbers are.</summary>
/// <param name="Plan">Pages, positions, offsets.</param>
/// <param name="Contents">The bytes, of <see cref="ShardPlan.Elements"/> elements.</param>
/// <param name="Limits">[slots, kv_heads] of a loaded shard, which do not change; none of a cache.</param>
internal sealed record KeyValueShard(ShardPlan Plan, Region Contents, PageLimits[] Limits)
{
    /// <summary>
    /// [slots, kv_heads] of a cache: <see cref="PageLimits"/> in the device's memory, beside the contents, where
    /// <see cref="IDevice.Append"/> raises them; empty of a loaded shard.
    /// </summary>
    public Region Growing { get; init; } = Region.Empty;

    /// <summary>Limits of a slot and KV head, where the host can read the device's memory.</summary>
    public PageLimits LimitsOf(int slot, int kvHead)
    {
        int index = (slot * Plan.Shape.KvHeads) + kvHead;
        return Growing.Bytes == 0 ? Limits[index] : Growing.AsSpan<PageLimits>()[index];
    }
}

/// <summary>How large the numbers of one page and KV head are, scales included: decides whether fast fp32 arithmetic is exact enough.</summary>
/// <param name="LargestKeyNorm">Largest Euclidean norm of a key; NaN or ∞ when an element is not finite.</param>
/// <param name="LargestValue">Largest magnitude of a value element; NaN or ∞ when one is not finite.</param>
internal readonly record struct PageLimits(float LargestKeyNorm, float LargestValue)
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
