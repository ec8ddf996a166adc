using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Layout;

/// <summary>The plan of one rank's keys and values: pages, positions and offsets, the same for the owner and for whoever gets its bytes.</summary>
/// <remarks>
/// Contents of a loaded shard are head-major by pages: all pages of keys, batch row after batch row, then all pages of values.
/// Nothing is padded: the bytes are those of the keys and values alone, so the ring sends nothing else. The plan of a cache
/// has pages in any order in the cache's contents, and grows.
/// </remarks>
internal sealed class ShardPlan
{
    private static long _lastVersion;

    /// <summary>Plans the keys of one rank.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="spans">The rank's pages, in storage order; every batch row has the same.</param>
    /// <param name="type">Storage type of keys and values.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys (MLA) and are not stored again.</param>
    /// <param name="scales">Scales of storage that has some; 1 when null.</param>
    /// <exception cref="ShapeMismatchException">There is not one scale for each KV head, or the storage type has none.</exception>
    public ShardPlan(
        AttentionShape shape, IReadOnlyList<PageSpan> spans, ElementType type, bool valuesInKeys, KeyValueScales? scales = null)
        : this(shape, [.. Enumerable.Repeat(spans, shape.Batch)], spans.Count, type, valuesInKeys, scales)
    {
    }

    /// <summary>Plans the keys of one rank, of which every batch row has its own.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="rows">[batch] the pages of each row, in storage order.</param>
    /// <param name="pagesPerBatch">Pages of each row.</param>
    /// <param name="type">Storage type of keys and values.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys (MLA) and are not stored again.</param>
    /// <param name="scales">Scales of storage that has some; 1 when null.</param>
    internal ShardPlan(
        AttentionShape shape, IReadOnlyList<PageSpan>[] rows, int pagesPerBatch, ElementType type, bool valuesInKeys, KeyValueScales? scales)
    {
        KeyValueScales.RequireFit(scales, type, shape.KvHeads);
        Scales = scales;
        Shape = shape;
        Type = type;
        ValuesInKeys = valuesInKeys;
        (PagesPerBatch, RoomPages) = (pagesPerBatch, pagesPerBatch);
        long keys = rows.Sum(row => row.Sum(span => (long)span.Count));
        long keyElements = shape.KvHeads * keys * shape.HeadDim;
        long valueElements = valuesInKeys ? 0 : shape.KvHeads * keys * shape.ValueDim;
        Elements = keyElements + valueElements;
        var pages = new KeyPage[shape.Batch * pagesPerBatch];
        long keyOffset = 0;
        long valueOffset = keyElements;
        for (int page = 0; page < pages.Length; page++)
        {
            PageSpan span = rows[page / pagesPerBatch][page % pagesPerBatch];
            pages[page] = new KeyPage(page / pagesPerBatch, span, keyOffset, valuesInKeys ? keyOffset : valueOffset, span.Count, page);
            keyOffset += (long)shape.KvHeads * span.Count * shape.HeadDim;
            valueOffset += (long)shape.KvHeads * span.Count * shape.ValueDim;
        }

        Pages = new PageTable(pages, pages.Length);
    }

    /// <summary>An empty plan over a cache's contents; <see cref="Grow(int, int)"/> and <see cref="Fill"/> give it pages.</summary>
    internal ShardPlan(
        AttentionShape shape, ElementType type, bool valuesInKeys, long elements, int mostPagesPerBatch, KeyValueScales? scales = null)
    {
        Scales = scales;
        Shape = shape;
        Type = type;
        ValuesInKeys = valuesInKeys;
        Elements = elements;
        Pages = new PageTable(new KeyPage[checked(shape.Batch * mostPagesPerBatch)], 0);
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

    /// <summary>Pages of each batch row.</summary>
    public int PagesPerBatch { get; private set; }

    /// <summary>
    /// Pages of each batch row that work has room for which is enqueued again as the rows grow: at least <see cref="PagesPerBatch"/>,
    /// and of a cache the same on every rank.
    /// </summary>
    public int RoomPages { get; private set; }

    /// <summary>All pages, batch row after batch row.</summary>
    public PageTable Pages { get; }

    /// <summary>
    /// [batch] tokens of each row of a cache, in an array that changes in place, the same as the call's key lengths: a page's key n
    /// stands n positions after its first, and is there if the row reaches it. Null where pages alone say which keys there are.
    /// </summary>
    public int[]? RowLengths { get; internal init; }

    /// <summary>The keys of the call that there are; null: all.</summary>
    public PresentTokens? Present { get; internal init; }

    /// <summary>[<see cref="LaneTree.Lanes"/> + 1] the first page of each lane, and the end; null: the lanes of positions.</summary>
    public int[]? FirstPages { get; internal init; }

    /// <summary>
    /// Changes whenever the pages or the lengths of their rows do: what was derived from them, such as a copy on a device, is then out of date.
    /// No two plans that changed have the same: plans of several ranks share the lengths of their rows.
    /// </summary>
    public long Version { get; private set; }

    /// <summary>Changes whenever pages come, go or move; not when rows grow inside theirs.</summary>
    public long PagesVersion { get; private set; }

    /// <summary>Elements of the contents.</summary>
    public long Elements { get; }

    /// <summary>Bytes of the contents.</summary>
    public long Bytes => Type.BytesFor(Elements);

    /// <summary>What a stored key element of a KV head is multiplied by.</summary>
    public float KeyScaleOf(int kvHead) => Scales?.Key[kvHead] ?? 1f;

    /// <summary>What a stored value element of a KV head is multiplied by.</summary>
    public float ValueScaleOf(int kvHead) => (ValuesInKeys ? Scales?.Key : Scales?.Value)?[kvHead] ?? 1f;

    /// <summary>Says how many pages each batch row has; their entries are filled afterwards.</summary>
    internal void Grow(int pagesPerBatch) => Grow(pagesPerBatch, pagesPerBatch);

    /// <summary>The same, with room for more.</summary>
    /// <param name="pagesPerBatch">Pages of each batch row.</param>
    /// <param name="roomPages">As <see cref="RoomPages"/>.</param>
    internal void Grow(int pagesPerBatch, int roomPages)
    {
        (PagesPerBatch, RoomPages) = (pagesPerBatch, roomPages);
        Pages.Resize(Shape.Batch * pagesPerBatch);
        TouchPages();
    }

    /// <summary>Fills the entry of a batch row's page.</summary>
    internal void Fill(int page, KeyPage entry) => Pages.Set((entry.Batch * PagesPerBatch) + page, entry);

    /// <summary>Says that lengths of rows have changed inside their pages.</summary>
    internal void Touch() => Version = Interlocked.Increment(ref _lastVersion);

    /// <summary>Says that entries have changed.</summary>
    internal void TouchPages()
    {
        PagesVersion++;
        Touch();
    }
}
