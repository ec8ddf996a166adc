using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Devices.Cuda.Attention;

/// <summary>What the kernels read beside tensors, in device memory: page tables, option arrays, query indices, fold programs.</summary>
/// <remarks>
/// Each is uploaded once for the object that it comes from and kept: a problem, a plan, an array. When too many are kept, all
/// are given back: enqueued work that still reads them comes before whatever is put in their place on the stream. The tables of
/// a plan that grows stay where they are as long as the plan lives.
/// </remarks>
internal sealed class DeviceTables(DeviceMemoryPool pool, DeviceCopies copies)
{
    private const int MostKept = 512;

    private readonly Dictionary<object, nint> _addresses = new(ReferenceEqualityComparer.Instance);
    private readonly Dictionary<ShardPlan, (nint Entries, nint Ranges, nint Slots, long Version)> _pages = new(ReferenceEqualityComparer.Instance);
    private readonly Dictionary<int[], (nint Address, long Version)> _lengths = new(ReferenceEqualityComparer.Instance);
    private readonly ConditionalWeakTable<ShardPlan, GrowingTables> _growing = [];
    private readonly List<(WeakReference<ShardPlan> Plan, nint Memory)> _grown = [];
    private long _evictions;

    /// <summary>Gives all back when too many are kept. To be called before a call looks up its first, for it would lose those it has.</summary>
    internal void MakeRoom()
    {
        if (_addresses.Count + _pages.Count + _lengths.Count < MostKept)
        {
            return;
        }

        foreach (nint address in (IEnumerable<nint>)[
            .. _addresses.Values, .. _lengths.Values.Select(kept => kept.Address),
            .. _pages.Values.SelectMany(kept => (nint[])[kept.Entries, kept.Ranges, kept.Slots])])
        {
            pool.Give(address);
        }

        _addresses.Clear();
        _lengths.Clear();
        _pages.Clear();
        _evictions++;
    }

    /// <summary><see cref="IStreamDevice.Refresh"/></summary>
    /// <remarks>Tables of a growing plan never move, so what is counted is how often all others were given back.</remarks>
    internal long Refresh(ShardPlan plan)
    {
        if (plan.RowLengths is null)
        {
            PagesOf(plan);
            return (_evictions << 32) + plan.Version;
        }

        // Of work that depends on the number of pages all ranks take the longest row's: they capture alike.
        int longest = 0;
        foreach (int length in GrowingOf(plan).IsPageBound ? plan.RowLengths : [])
        {
            longest = Math.Max(longest, length);
        }

        return (_evictions << 32) + PageSpan.PagesFor(longest);
    }

    /// <summary>The folds of a growing plan's lanes for some nodes.</summary>
    internal nint LanesOf(ShardPlan plan, ReadOnlySpan<LaneNode> nodes)
    {
        LaneProgram lanes = GrowingOf(plan).Lanes;
        lanes.SetNodes(nodes);
        lanes.Follow(plan);
        return lanes.Address;
    }

    /// <summary>Says that work over a growing plan depends on the number of its pages.</summary>
    internal void BindToPages(ShardPlan plan) => GrowingOf(plan).IsPageBound = true;

    /// <summary>The pages of a plan, where those of each batch row begin and end, and their rows in the limits.</summary>
    internal (nint Entries, nint Ranges, nint Slots) PagesOf(ShardPlan plan)
    {
        if (plan.RowLengths is not null)
        {
            GrowingTables growing = GrowingOf(plan);
            return (growing.Entries, growing.Ranges, growing.Slots);
        }

        if (_pages.TryGetValue(plan, out (nint Entries, nint Ranges, nint Slots, long Version) kept))
        {
            if (kept.Version == plan.Version)
            {
                return (kept.Entries, kept.Ranges, kept.Slots);
            }

            pool.Give(kept.Entries);
            pool.Give(kept.Ranges);
            pool.Give(kept.Slots);
        }

        return UploadPages(plan);
    }

    /// <summary>The copy of row lengths, which a cache changes in place together with its plan; 0 for none.</summary>
    internal nint LengthsOf(int[]? lengths, ShardPlan plan)
    {
        if (lengths is null)
        {
            return 0;
        }

        if (ReferenceEquals(lengths, plan.RowLengths))
        {
            return GrowingOf(plan).Lengths;
        }

        bool isKept = _lengths.TryGetValue(lengths, out (nint Address, long Version) kept);
        if (isKept && kept.Version == plan.Version)
        {
            return kept.Address;
        }

        nint address = isKept ? kept.Address : pool.Take((long)lengths.Length * sizeof(int));
        copies.Upload(lengths.AsSpan(), address);
        _lengths[lengths] = (address, plan.Version);
        return address;
    }

    /// <summary>The limits of a shard's slots, [slots, kv_heads]: those that grow on the device, or the copy of a loaded shard's.</summary>
    internal nint LimitsOf(KeyValueShard shard) => shard.Growing.Bytes > 0 ? shard.Growing.Address : Of(shard.Limits);

    /// <summary>An array's copy; 0 for none. The array must not change afterwards.</summary>
    internal nint Of<T>(T[]? values)
        where T : unmanaged
    {
        if (values is null)
        {
            return 0;
        }

        if (!_addresses.TryGetValue(values, out nint address))
        {
            address = Upload(values.AsSpan());
            _addresses.Add(values, address);
        }

        return address;
    }

    private (nint Entries, nint Ranges, nint Slots) UploadPages(ShardPlan plan)
    {
        PageEntry[] entries = [.. plan.Pages.Select(page => GrowingTables.EntryOf(page, page.Span.Count))];
        int[] ranges = [.. Enumerable.Range(0, plan.Shape.Batch + 1).Select(batch => batch * plan.PagesPerBatch)];
        int[] slots = [.. plan.Pages.Select(page => page.Slot)];
        (nint Entries, nint Ranges, nint Slots) uploaded = (Upload(entries.AsSpan()), Upload(ranges.AsSpan()), Upload(slots.AsSpan()));
        _pages[plan] = (uploaded.Entries, uploaded.Ranges, uploaded.Slots, plan.Version);
        return uploaded;
    }

    private GrowingTables GrowingOf(ShardPlan plan)
    {
        if (!_growing.TryGetValue(plan, out GrowingTables? tables))
        {
            GiveBackForgotten();
            tables = new GrowingTables(pool, copies, plan);
            _growing.Add(plan, tables);
            _grown.Add((new WeakReference<ShardPlan>(plan), tables.Memory));
        }

        tables.Follow(plan);
        return tables;
    }

    private void GiveBackForgotten()
    {
        for (int i = _grown.Count - 1; i >= 0; i--)
        {
            if (!_grown[i].Plan.TryGetTarget(out _))
            {
                pool.Give(_grown[i].Memory);
                _grown.RemoveAt(i);
            }
        }
    }

    private unsafe nint Upload<T>(ReadOnlySpan<T> values)
        where T : unmanaged
    {
        nint address = pool.Take((long)values.Length * sizeof(T));
        copies.Upload(values, address);
        return address;
    }
}

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

    /// <summary>A page as kernels see it, of which so many keys may be there.</summary>
    internal static PageEntry EntryOf(in KeyPage page, int count) => new()
    {
        KeyOffset = page.KeyOffset,
        ValueOffset = page.ValueOffset,
        RunFirst = page.Span.Run.First,
        RunOffset = page.Span.Offset,
        RunBlock = page.Span.Run.Block,
        RunStride = page.Span.Run.Stride,
        Count = count,
        Capacity = page.Capacity,
    };

    private static long BytesOf<T>(ReadOnlySpan<T> values)
        where T : unmanaged => MemoryMarshal.AsBytes(values).Length;

    private void FollowPages(ShardPlan plan)
    {
        PageTable pages = plan.Pages;
        (int first, int end) = (pages.Count, 0);
        for (int page = 0; page < pages.Count; page++)
        {
            KeyPage now = pages[page];
            PageEntry entry = EntryOf(now, now.Capacity);
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
