using System.Collections.Generic;

namespace TreeAttention.Distributed;

/// <summary>Where one page of a batch row lies inside a shard's contents.</summary>
/// <remarks>Keys are [kv_head][count][head_dim] from <paramref name="KeyOffset"/> on, values [kv_head][count][value_dim] from <paramref name="ValueOffset"/> on.</remarks>
/// <param name="Batch">The batch row.</param>
/// <param name="Span">The page's keys and their global positions.</param>
/// <param name="KeyOffset">First key element, counted from the start of the contents.</param>
/// <param name="ValueOffset">First value element; equal to <paramref name="KeyOffset"/> when values are a part of the keys.</param>
public readonly record struct KeyPage(int Batch, PageSpan Span, long KeyOffset, long ValueOffset);

/// <summary>The plan of one rank's keys and values: pages, positions and offsets, the same for the owner and for whoever gets its bytes.</summary>
/// <remarks>
/// Contents are head-major by pages: all pages of keys, batch row after batch row, then all pages of values. Nothing is
/// padded: the bytes are those of the keys and values alone, so the ring sends nothing else.
/// </remarks>
public sealed class ShardPlan
{
    /// <summary>Plans the keys of one rank.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="spans">The rank's pages, in storage order; every batch row has the same.</param>
    /// <param name="type">Storage type of keys and values.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys (MLA) and are not stored again.</param>
    /// <param name="scales">Scales of f8e4m3 storage; 1 when null.</param>
    /// <exception cref="ShapeMismatchException">There is not one scale for each KV head, or the storage type has none.</exception>
    public ShardPlan(
        AttentionShape shape, IReadOnlyList<PageSpan> spans, ElementType type, bool valuesInKeys, KeyValueScales? scales = null)
    {
        if (scales is not null && (type != ElementType.Float8E4M3 || scales.Key.Length != shape.KvHeads))
        {
            throw new ShapeMismatchException(
                $"Scales of {scales.Key.Length} KV heads do not fit {shape.KvHeads} KV heads stored as {type.ShortName()}: only f8e4m3 has scales, one for each KV head.");
        }

        Scales = scales;
        Shape = shape;
        Type = type;
        ValuesInKeys = valuesInKeys;
        PagesPerBatch = spans.Count;
        foreach (PageSpan span in spans)
        {
            KeysPerBatch += span.Count;
        }

        long keyElements = (long)shape.Batch * shape.KvHeads * KeysPerBatch * shape.HeadDim;
        long valueElements = valuesInKeys ? 0 : (long)shape.Batch * shape.KvHeads * KeysPerBatch * shape.ValueDim;
        Elements = keyElements + valueElements;
        var pages = new KeyPage[shape.Batch * spans.Count];
        long keyOffset = 0;
        long valueOffset = keyElements;
        for (int page = 0; page < pages.Length; page++)
        {
            PageSpan span = spans[page % spans.Count];
            pages[page] = new KeyPage(page / spans.Count, span, keyOffset, valuesInKeys ? keyOffset : valueOffset);
            keyOffset += (long)shape.KvHeads * span.Count * shape.HeadDim;
            valueOffset += (long)shape.KvHeads * span.Count * shape.ValueDim;
        }

        Pages = pages;
    }

    /// <summary>Sizes of the call.</summary>
    public AttentionShape Shape { get; }

    /// <summary>Storage type of keys and values.</summary>
    public ElementType Type { get; }

    /// <summary>Values are the first value_dim elements of the keys.</summary>
    public bool ValuesInKeys { get; }

    /// <summary>What stored elements are multiplied by; null: 1.</summary>
    public KeyValueScales? Scales { get; }

    /// <summary>Elements from one value to the next.</summary>
    public int ValueStride => ValuesInKeys ? Shape.HeadDim : Shape.ValueDim;

    /// <summary>Keys of each batch row.</summary>
    public int KeysPerBatch { get; }

    /// <summary>Pages of each batch row.</summary>
    public int PagesPerBatch { get; }

    /// <summary>All pages, batch row after batch row.</summary>
    public IReadOnlyList<KeyPage> Pages { get; }

    /// <summary>Elements of the contents.</summary>
    public long Elements { get; }

    /// <summary>Bytes of the contents.</summary>
    public long Bytes => Elements * Type.SizeInBytes();

    /// <summary>What a stored key element of a KV head is multiplied by.</summary>
    public float KeyScaleOf(int kvHead) => Scales?.Key[kvHead] ?? 1f;

    /// <summary>What a stored value element of a KV head is multiplied by.</summary>
    public float ValueScaleOf(int kvHead) => (ValuesInKeys ? Scales?.Key : Scales?.Value)?[kvHead] ?? 1f;
}

/// <summary>How large the numbers of one page and KV head are, scales included: decides whether fast fp32 arithmetic is exact enough.</summary>
/// <param name="LargestKeyNorm">Largest Euclidean norm of a key; NaN or ∞ when an element is not finite.</param>
/// <param name="LargestValue">Largest magnitude of a value element; NaN or ∞ when one is not finite.</param>
public readonly record struct PageLimits(float LargestKeyNorm, float LargestValue);

/// <summary>Keys and values of one shard in a device's memory: a plan, its bytes, and how large its numbers are.</summary>
/// <param name="Plan">Pages, positions, offsets.</param>
/// <param name="Contents">The bytes, of <see cref="ShardPlan.Elements"/> elements.</param>
/// <param name="Limits">[pages, kv_heads]</param>
public sealed record KeyValueShard(ShardPlan Plan, Region Contents, PageLimits[] Limits);
