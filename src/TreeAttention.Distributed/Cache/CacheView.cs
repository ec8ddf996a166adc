using System;
using System.Numerics;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Distributed.Cache;

/// <summary>Some rows of a cache as the batch of an attention call: a plan and key lengths that follow the cache in place.</summary>
/// <remarks>
/// Every batch row has the pages that the longest one has on this rank, in lane order; those that a row has not are without
/// keys. While rows only grow inside their pages, following costs a few entries; when a page begins, the plan is made again.
/// The plan has room for twice the pages of the longest row at most, a power of two: work that is sized by it is made anew
/// each time that the context has doubled, at the same token on every rank.
/// </remarks>
internal sealed class CacheView
{
    private readonly ShardedKvCache _cache;
    private readonly int[] _rows;
    private readonly int[] _order; // this rank's pages of the longest row, in lane order
    private readonly int[] _place; // [pages] index in that order
    private long _version = -1;
    private int _room; // pages over all ranks that the plan has room for

    /// <summary>A view of rows.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="rows">The row of each batch row.</param>
    /// <param name="shape">Sizes of the call; its key length is the cache's largest length.</param>
    public CacheView(ShardedKvCache cache, int[] rows, AttentionShape shape)
    {
        (_cache, _rows) = (cache, rows);
        _order = new int[cache.OwnPages(cache.Options.MaxLength)];
        _place = new int[cache.Options.MostPages];
        KeyLengths = new int[rows.Length];
        ShardPlan whole = cache.Contents.Plan;
        int most = cache.Pages.MostPagesOfRank(cache.Options.MostPages); // the same on every rank, as the room is that grows up to it
        Plan = new ShardPlan(shape, whole.Type, whole.ValuesInKeys, whole.Elements, most, whole.Scales) { RowLengths = KeyLengths };
    }

    /// <summary>[batch] tokens of each row; the array of the call's options, changed in place.</summary>
    public int[] KeyLengths { get; }

    /// <summary>The pages, changed in place.</summary>
    public ShardPlan Plan { get; }

    /// <summary>What the rows have on each rank, for algorithms that move it; it follows this view.</summary>
    public TravellingCache Pack() => new(_cache, _rows, KeyLengths, Plan.Shape);

    /// <summary>Takes over what a layer of the cache holds now.</summary>
    public void Follow(int layer)
    {
        int longest = 0;
        foreach (int row in _rows)
        {
            longest = Math.Max(longest, _cache.Rows.LengthOf(layer, row));
        }

        int pages = _cache.OwnPages(longest);
        int room = RoomFor(PageSpan.PagesFor(longest));
        if (pages != Plan.PagesPerBatch || room != _room || _version != _cache.Pages.Version)
        {
            Plan.Grow(pages, room == _room ? Plan.RoomPages : _cache.Pages.MostPagesOfRank(room));
            _room = room;
            Rebuild(layer, longest);
            return;
        }

        (bool isChanged, bool isMoved) = (false, false);
        for (int batch = 0; batch < _rows.Length; batch++)
        {
            int length = _cache.Rows.LengthOf(layer, _rows[batch]);
            if (length != KeyLengths[batch])
            {
                int first = Math.Min(length, KeyLengths[batch]) / PageSpan.Keys;
                int end = PageSpan.PagesFor(Math.Max(length, KeyLengths[batch]));
                isMoved |= PageSpan.PagesFor(length) != PageSpan.PagesFor(KeyLengths[batch]);
                KeyLengths[batch] = length;
                FillPages(batch, first, end);
                isChanged = true;
            }
        }

        if (isMoved)
        {
            Plan.TouchPages();
        }
        else if (isChanged)
        {
            Plan.Touch();
        }
    }

    private int RoomFor(int pages) =>
        (int)Math.Min((uint)_cache.Options.MostPages, BitOperations.RoundUpToPowerOf2((uint)Math.Max(1, pages)));

    private void Rebuild(int layer, int longest)
    {
        _version = _cache.Pages.Version;
        int place = 0;
        foreach (int lane in _cache.Lanes)
        {
            for (long page = LaneTree.FirstPageOf(lane); page * PageSpan.Keys < longest; page += LaneTree.Lanes)
            {
                _order[place] = (int)page;
                _place[page] = place++;
            }
        }

        for (int batch = 0; batch < _rows.Length; batch++)
        {
            KeyLengths[batch] = _cache.Rows.LengthOf(layer, _rows[batch]);
            FillPages(batch, 0, PageSpan.PagesFor(longest));
        }
    }

    private void FillPages(int batch, int first, int end)
    {
        int row = _rows[batch];
        for (int page = first; page < end; page++)
        {
            if (!_cache.IsOwn(page))
            {
                continue;
            }

            int position = page * PageSpan.Keys;
            int count = Math.Clamp(KeyLengths[batch] - position, 0, PageSpan.Keys);
            var span = new PageSpan(KeyRun.Contiguous(position, PageSpan.Keys), 0, count);
            if (count == 0)
            {
                Plan.Fill(_place[page], new KeyPage(batch, span, 0, 0, PageSpan.Keys, _cache.Contents.EmptySlot));
                continue;
            }

            int slot = _cache.Pages.SlotOf(row, page);
            Plan.Fill(_place[page], new KeyPage(
                batch, span, _cache.Contents.KeyOffsetOf(slot), _cache.Contents.ValueOffsetOf(slot), PageSpan.Keys, slot));
        }
    }
}
