using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Layout;

/// <summary>Keys and values of one shard in a device's memory: a plan, its bytes, and how large its numbers are.</summary>
/// <param name="Plan">Pages, positions, offsets.</param>
/// <param name="Contents">The bytes, of <see cref="ShardPlan.Elements"/> elements.</param>
/// <param name="Limits">[slots, kv_heads] of a loaded shard, which do not change; none of a cache.</param>
public sealed record KeyValueShard(ShardPlan Plan, Region Contents, PageLimits[] Limits)
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

/// <summary>Scales of keys and values in a storage type that has some: a number is the stored element × the scale of its KV head.</summary>
/// <remarks>
/// An element is stored as the one nearest to number / scale, so numbers up to the type's largest × scale can be stored (448 of f8e4m3). Scales are between
/// <see cref="Smallest"/> and <see cref="Largest"/>: no product of a scale and a stored element leaves fp32's normal range.
/// </remarks>
public sealed class KeyValueScales
{
    /// <summary>The smallest scale.</summary>
    public const float Smallest = 1e-30f;

    /// <summary>The largest scale.</summary>
    public const float Largest = 1e30f;

    private readonly float[] _keysAndValues;
    private readonly float[] _keysTwice;

    /// <summary>Scales of each KV head.</summary>
    /// <param name="key">[kv_heads]</param>
    /// <param name="value">[kv_heads]; where values are a part of the keys they share the keys' scales.</param>
    /// <exception cref="ArgumentException">The lengths differ, or a scale lies outside the range.</exception>
    public KeyValueScales(float[] key, float[] value)
    {
        if (key.Length != value.Length)
        {
            throw new ArgumentException($"{key.Length} key scales and {value.Length} value scales were given: there is one of each for a KV head.", nameof(value));
        }

        if (!Array.TrueForAll(key, IsScale) || !Array.TrueForAll(value, IsScale))
        {
            throw new ArgumentException($"Scales lie between {Smallest} and {Largest}.", nameof(key));
        }

        Key = key;
        Value = value;
        _keysAndValues = [.. key, .. value];
        _keysTwice = [.. key, .. key];
    }

    /// <summary>[kv_heads]</summary>
    public float[] Key { get; }

    /// <summary>[kv_heads]</summary>
    public float[] Value { get; }

    /// <summary>[2, kv_heads] those of keys, then those of values, as a device keeps them; the same array each time.</summary>
    /// <param name="valuesInKeys">Values are a part of the keys.</param>
    public float[] OfStorage(bool valuesInKeys) => valuesInKeys ? _keysTwice : _keysAndValues;

    /// <summary>The scales of one KV head alone.</summary>
    public KeyValueScales OfHead(int kvHead) => new([Key[kvHead]], [Value[kvHead]]);

    /// <summary>Throws where scales do not fit what is stored.</summary>
    /// <exception cref="ShapeMismatchException">There is not one scale for each KV head, or the storage type has none.</exception>
    internal static void RequireFit(KeyValueScales? scales, ElementType type, int kvHeads)
    {
        if (scales is not null && (!StorageType.Of(type).HasScales || scales.Key.Length != kvHeads))
        {
            throw new ShapeMismatchException(
                $"Scales of {scales.Key.Length} KV heads do not fit {kvHeads} KV heads stored as {type.ShortName()}: only {StorageType.ScaledNames("and")} has scales, one for each KV head.");
        }
    }

    /// <summary>True for a number that can be a scale.</summary>
    public static bool IsScale(float number) => number is >= Smallest and <= Largest;
}
