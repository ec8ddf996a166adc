using System;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>Scales of keys and values in a storage type that has some: a number is the stored element × the scale of its KV head.</summary>
/// <remarks>
/// An element is stored as the one nearest to number / scale, so numbers that round to the type's largest × scale can be stored (f8e4m3: up to 464). Scales are between
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
        ArgumentNullException.ThrowIfNull(key);
        ArgumentNullException.ThrowIfNull(value);
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

    /// <summary>How many there are, and their range: <c>scales of 8 KV heads, keys 0.01 to 0.02, values 0.5 to 0.5</c>.</summary>
    public override string ToString() => Key.Length == 0 ? "scales of no KV head" : string.Create(
        CultureInfo.InvariantCulture,
        $"scales of {Key.Length} KV heads, keys {Key.Min():G4} to {Key.Max():G4}, values {Value.Min():G4} to {Value.Max():G4}");

    /// <summary>[2, kv_heads] those of keys, then those of values, as a device keeps them; the same array each time.</summary>
    /// <param name="valuesInKeys">Values are a part of the keys.</param>
    internal float[] OfStorage(bool valuesInKeys) => valuesInKeys ? _keysTwice : _keysAndValues;

    /// <summary>The scales of one KV head alone.</summary>
    internal KeyValueScales OfHead(int kvHead) => new([Key[kvHead]], [Value[kvHead]]);

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
    internal static bool IsScale(float number) => number is >= Smallest and <= Largest;
}
