using System;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The page table and row lengths of a growing plan in device memory, with room for all that the plan may become: addresses stay.</summary>
/// <remarks>
/// A page's entry says how many keys the page has room for; how many there are follows from the row's length. So a step that grows
/// rows inside their pages changes nothing but the lengths. What changed is copied in the order of the stream, and nothing is
/// allocated: work captured over these addresses sees what is there when it is launched.
/// </remarks>
internal sealed class GrowingTables
{
    private readonly DeviceCopies _copies;
    private readonly PageEntry[] _entries;
    private readonly int[] _slots;
    private readonly int[] _ranges;
    private readonly nint _lengths;
    private long _version = -1;
    private long _pagesVersion = -1;
    private int _pages; // that are in the device's table

    /// <summary>Takes memory for a plan.</summary>
    internal GrowingTables(DeviceMemoryPool pool, DeviceCopies copies, ShardPlan plan)
    {
        _copies = copies;
        int most = plan.Pages.Capacity;
        _entries = new PageEntry[most];
        _slots = new int[most];
        _ranges = new int[plan.Shape.Batch + 1];
        (long entries, long slots) = (BytesOf<PageEntry>(_entries), BytesOf<int>(_slots));
        long program = LaneProgram.BytesFor(most / Math.Max(1, plan.Shape.Batch));
        Memory = pool.Take(entries + program + slots + BytesOf<int>(_ranges) + BytesOf<int>(plan.RowLengths));
        Lanes = new LaneProgram(copies, Memory + (nint)entries);
        Slots = Lanes.Address + (nint)program;
        Ranges = Slots + (nint)slots;
        _lengths = Ranges + (nint)BytesOf<int>(_ranges);
    }

    /// <summary>All of the memory; the entries come first.</summary>
    internal nint Memory { get; }

    /// <summary>[pages] <c>page_entry</c></summary>
    internal nint Entries => Memory;

    /// <summary>[batch + 1]</summary>
    internal nint Ranges { get; }

    /// <summary>[pages]</summary>
    internal nint Slots { get; }

    /// <summary>[batch]</summary>
    internal nint Lengths => _lengths;

    /// <summary>The folds of the lanes.</summary>
    internal LaneProgram Lanes { get; }

    /// <summary>Captured work depends on the number of pages.</summary>
    internal bool IsPageBound { get; set; }

    /// <summary>Enqueues copies of what has changed since the last call.</summary>
    internal void Follow(ShardPlan plan)
    {
        if (_pagesVersion != plan.PagesVersion)
        {
            FollowPages(plan);
            Lanes.Follow(plan);
            _pagesVersion = plan.PagesVersion;
        }

        if (_version != plan.Version)
        {
            _copies.Upload<int>(plan.RowLengths, _lengths);
            _version = plan.Version;
        }
    }

    private static long BytesOf<T>(ReadOnlySpan<T> values)
        where T : unmanaged => MemoryMarshal.AsBytes(values).Length;

    private void FollowPages(ShardPlan plan)
    {
        PageTable pages = plan.Pages;
        (int first, int end) = (pages.Count, 0);
        for (int page = 0; page < pages.Count; page++)
        {
            KeyPage now = pages[page];
            var entry = PageEntry.Of(now, now.Capacity);
            if (page >= _pages || _slots[page] != now.Slot || entry != _entries[page])
            {
                (first, end) = (Math.Min(first, page), page + 1);
                (_entries[page], _slots[page]) = (entry, now.Slot);
            }
        }

        _pages = pages.Count;
        for (int batch = 0; batch < _ranges.Length; batch++)
        {
            _ranges[batch] = batch * plan.PagesPerBatch;
        }

        Upload<PageEntry>(_entries, first, end, Entries);
        Upload<int>(_slots, first, end, Slots);
        _copies.Upload<int>(_ranges, Ranges);
    }

    private void Upload<T>(ReadOnlySpan<T> values, int first, int end, nint to)
        where T : unmanaged
    {
        if (first < end)
        {
            _copies.Upload(values[first..end], to + (nint)BytesOf(values[..first]));
        }
    }
}
