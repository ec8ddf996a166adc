using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>New tokens in host memory: each row rotated, converted to the storage type, written and measured.</summary>
internal sealed class TokenRows
{
    private readonly float[] _row = new float[AttentionShape.MaxHeadDim];

    /// <summary>Stores the tokens that this rank owns.</summary>
    /// <param name="tokens">The tokens.</param>
    /// <param name="shard">The cache's contents and limits; the limits grow.</param>
    internal void Store(in TokenBlock tokens, KeyValueShard shard)
    {
        AttentionShape shape = shard.Plan.Shape;
        ReadOnlySpan<float> keys = tokens.Keys.AsSpan<float>();
        ReadOnlySpan<float> values = tokens.Values.AsSpan<float>();
        Span<PageLimits> grown = shard.Growing.AsSpan<PageLimits>();
        for (int row = 0; row < tokens.Count * shape.KvHeads; row++)
        {
            (int token, int head) = Math.DivRem(row, shape.KvHeads);
            TokenPlace place = tokens.Places[token];
            if (!place.IsHere)
            {
                continue;
            }

            ref PageLimits limits = ref grown[(place.Slot * shape.KvHeads) + head];
            Span<float> key = _row.AsSpan(0, shape.HeadDim);
            keys.Slice(row * shape.HeadDim, shape.HeadDim).CopyTo(key);
            tokens.Rotary?.Turn(key, token);
            float keyScale = shard.Plan.KeyScaleOf(head);
            Write(key, keyScale, shard.Contents, place.KeyOffset + ((long)head * PageSpan.Keys * shape.HeadDim));
            limits = limits.WithKey(key, keyScale);

            float valueScale = shard.Plan.ValueScaleOf(head);
            Span<float> value = _row.AsSpan(0, shape.ValueDim);
            if (!shard.Plan.ValuesInKeys)
            {
                values.Slice(row * shape.ValueDim, shape.ValueDim).CopyTo(value);
                Write(value, valueScale, shard.Contents, place.ValueOffset + ((long)head * PageSpan.Keys * shape.ValueDim));
            }

            limits = limits.WithValue(value, valueScale);
        }
    }

    /// <summary>Takes queries into the order of a block, rotated.</summary>
    internal static void Arrange(AttentionShape shape, ReadOnlySpan<float> queries, RotaryAngles? rotary, Span<float> into)
    {
        int dim = shape.HeadDim;
        for (int row = 0; row < shape.Batch * shape.QueryLength * shape.QueryHeads; row++)
        {
            (int token, int head) = Math.DivRem(row, shape.QueryHeads);
            (int batch, int query) = Math.DivRem(token, shape.QueryLength);
            int place = (((batch * shape.QueryHeads) + head) * shape.QueryLength) + query;
            Span<float> target = into.Slice(place * dim, dim);
            queries.Slice(row * dim, dim).CopyTo(target);
            rotary?.Turn(target, token);
        }
    }

    // The row becomes what was stored, not multiplied by the scale, for its limits.
    private static void Write(Span<float> row, float scale, Region contents, long element)
    {
        Span<byte> stored = contents.Slice(element, row.Length).AsSpan<byte>();
        if (contents.Type == ElementType.Float8E4M3)
        {
            ElementConversion.ToFloat8E4M3(row, scale, stored);
        }
        else
        {
            ElementConversion.FromFloat(row, contents.Type, stored);
        }

        ElementConversion.ToFloat(stored, contents.Type, row);
    }
}
