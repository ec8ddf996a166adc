namespace TreeAttention.Distributed;

/// <summary>Where one page of a batch row lies inside a shard's contents.</summary>
/// <remarks>
/// Keys are [kv_head][capacity][head_dim] from <paramref name="KeyOffset"/> on, values [kv_head][capacity][value_dim] from
/// <paramref name="ValueOffset"/> on; the first <c>Span.Count</c> of each head are filled. A loaded shard's pages are full.
/// </remarks>
/// <param name="Batch">The batch row.</param>
/// <param name="Span">The page's keys and their global positions; without keys where only other batch rows have this page.</param>
/// <param name="KeyOffset">First key element, counted from the start of the contents.</param>
/// <param name="ValueOffset">First value element; equal to <paramref name="KeyOffset"/> when values are a part of the keys.</param>
/// <param name="Capacity">Keys that each head has room for: the distance of the heads, in keys.</param>
/// <param name="Slot">Row of the page in the shard's limits.</param>
public readonly record struct KeyPage(int Batch, PageSpan Span, long KeyOffset, long ValueOffset, int Capacity, int Slot);
