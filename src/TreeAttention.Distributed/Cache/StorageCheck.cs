using System;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed;

/// <summary>Refuses numbers that a cache must not store: those that are not finite, or too large for its storage type, also after their rotation.</summary>
/// <param name="options">Storage type, scales, rotation, policy.</param>
internal sealed class StorageCheck(CacheOptions options)
{
    private readonly RotaryAngles? _angles = options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
    private readonly float[] _row = new float[AttentionShape.MaxHeadDim];

    /// <summary>Index of the first query element that is refused; -1 for none.</summary>
    /// <param name="query">Queries, however they are ordered.</param>
    /// <param name="policy">What happens to numbers that are not finite.</param>
    public static int FirstRefused(ReadOnlySpan<float> query, NonFinitePolicy policy)
    {
        if (policy == NonFinitePolicy.Propagate || query.IsEmpty || float.IsFinite(TensorPrimitives.MaxMagnitude(query)))
        {
            return -1;
        }

        int index = 0;
        while (float.IsFinite(query[index]))
        {
            index++;
        }

        return index;
    }

    /// <summary>All of many tokens' numbers can surely be stored; if not, each token has to be looked at.</summary>
    /// <param name="key">[tokens, kv_heads, head_dim]</param>
    /// <param name="value">[tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="isRotated">Keys are rotated already.</param>
    public bool AllFit(ReadOnlySpan<float> key, ReadOnlySpan<float> value, bool isRotated) =>
        Fits(key, isRotated ? null : _angles, options.Scales is { } scales ? TensorPrimitives.Min<float>(scales.Key) : 1f)
        && Fits(value, null, options.Scales is { } same ? TensorPrimitives.Min<float>(same.Value) : 1f);

    /// <summary>Throws when a token's key must not be stored.</summary>
    /// <param name="row">Row of the cache, for the message.</param>
    /// <param name="position">Position in the row, for the message.</param>
    /// <param name="turn">Position by which the key is rotated.</param>
    /// <param name="key">[kv_heads, head_dim]</param>
    /// <param name="isRotated">It is rotated already.</param>
    /// <exception cref="FaultException">Which number must not be stored, and why (65).</exception>
    public void RequireKey(int row, int position, int turn, ReadOnlySpan<float> key, bool isRotated)
    {
        RotaryAngles? angles = isRotated ? null : _angles;
        for (int head = 0; head < options.KvHeads; head++)
        {
            ReadOnlySpan<float> numbers = key.Slice(head * options.HeadDim, options.HeadDim);
            float scale = options.Scales?.Key[head] ?? 1f;
            if (Fits(numbers, angles, scale))
            {
                continue;
            }

            Span<float> stored = _row.AsSpan(0, numbers.Length);
            numbers.CopyTo(stored);
            if (angles is not null)
            {
                Require("key", row, position, head, stored, ElementType.Float32, scale);
                angles.Take([turn]);
                angles.Turn(stored, 0);
            }

            Require("key", row, position, head, stored, options.Type, scale);
        }
    }

    /// <summary>Throws when a token's value must not be stored.</summary>
    /// <param name="row">Row of the cache, for the message.</param>
    /// <param name="position">Position in the row, for the message.</param>
    /// <param name="value">[kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <exception cref="FaultException">Which number must not be stored, and why (65).</exception>
    public void RequireValue(int row, int position, ReadOnlySpan<float> value)
    {
        for (int head = 0; head < value.Length / options.ValueDim; head++)
        {
            ReadOnlySpan<float> numbers = value.Slice(head * options.ValueDim, options.ValueDim);
            float scale = options.Scales?.Value[head] ?? 1f;
            if (!Fits(numbers, null, scale))
            {
                Require("value", row, position, head, numbers, options.Type, scale);
            }
        }
    }

    private void Require(string name, int row, int position, int head, ReadOnlySpan<float> elements, ElementType type, float scale)
    {
        for (int dim = 0; dim < elements.Length; dim++)
        {
            if (StorageRange.FaultOf(name, row, position, head, dim, elements[dim], type, options.NonFinite, scale) is { } fault)
            {
                throw fault;
            }
        }
    }

    // A rotated number is at most √2 times as large; whether it really overflows is then seen by rotating it.
    private bool Fits(ReadOnlySpan<float> numbers, RotaryAngles? angles, float scale)
    {
        double growth = angles is null ? 1 : 1.5;
        double largest = numbers.IsEmpty ? 0 : growth * Math.Abs((double)TensorPrimitives.MaxMagnitude(numbers));
        return double.IsFinite(largest) && !StorageRange.Overflows(largest, options.Type, scale);
    }
}
