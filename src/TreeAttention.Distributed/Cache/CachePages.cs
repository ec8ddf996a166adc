using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Cache;

/// <summary>The page table of a cache: which slot of its owner holds each page of each row.</summary>
/// <remarks>
/// Page c of a row holds positions 512 c to 512 c + 511 and belongs to the rank of its lane. Every rank keeps the table of all
/// ranks and does the same to it, so all know without a message which rank is full.
/// </remarks>
internal sealed class CachePages
{
    private readonly int _mostPages;
    private readonly int[] _slots;   // [rows, most pages]
    private readonly int[] _lengths; // [rows]
    private readonly PagePool[] _pools; // [ranks]
    private readonly int[] _owners;  // [lanes] by page
    private readonly int[] _wanted;  // [ranks] scratch

    /// <summary>An empty table.</summary>
    /// <param name="rows">Rows.</param>
    /// <param name="mostPages">Pages of a row at its longest.</param>
    /// <param name="slots">[ranks] pages that each rank has room for.</param>
    public CachePages(int rows, int mostPages, int[] slots)
    {
        _mostPages = mostPages;
        _slots = new int[checked(rows * mostPages)];
        _lengths = new int[rows];
        _pools = Array.ConvertAll(slots, count => new PagePool(count));
        _wanted = new int[slots.Length];
        _owners = new int[LaneTree.Lanes];
        for (int page = 0; page < LaneTree.Lanes; page++)
        {
            _owners[page] = LaneTree.OwnerOf(page, slots.Length);
        }
    }

    /// <summary>Changes when a page of a row moves to another slot or rows lose pages; growth alone does not change it.</summary>
    public long Version { get; private set; }

    /// <summary>The rank that owns a page.</summary>
    public int OwnerOf(int page) => _owners[page % LaneTree.Lanes];

    /// <summary>The most that a rank owns of a row's first pages.</summary>
    public int MostPagesOfRank(int pages)
    {
        Array.Clear(_wanted);
        for (int lane = 0; lane < LaneTree.Lanes; lane++)
        {
            _wanted[_owners[lane]] += (Math.Max(0, pages - lane) + LaneTree.Lanes - 1) / LaneTree.Lanes;
        }

        return _wanted.Max();
    }

    /// <summary>Slot of a row's page in its owner's memory.</summary>
    public int SlotOf(int row, int page) => _slots[(row * _mostPages) + page];

    /// <summary>Tokens that the row has pages for.</summary>
    public int LengthOf(int row) => _lengths[row];

    /// <summary>All slots of a rank.</summary>
    public int SlotsOn(int rank) => _pools[rank].Slots;

    /// <summary>Slots of a rank that no row uses.</summary>
    public int FreeOn(int rank) => _pools[rank].Free;

    /// <summary>Finds room for tokens behind each of some different rows, or changes nothing.</summary>
    /// <param name="rows">The rows.</param>
    /// <param name="lengths">How many tokens each shall have room for.</param>
    /// <param name="prepare">Called for each slot that a row gets: the rank, the slot whose contents it takes over (-1 for none), the slot.</param>
    /// <exception cref="FaultException">A rank has not enough free pages (71); every rank throws it.</exception>
    public void Extend(ReadOnlySpan<int> rows, ReadOnlySpan<int> lengths, Action<int, int, int> prepare)
    {
        RequireRoom(rows, lengths);
        for (int i = 0; i < rows.Length; i++)
        {
            int row = rows[i];
            if (lengths[i] <= _lengths[row])
            {
                continue;
            }

            if (IsSharedEnd(row))
            {
                TakeOwn(row, _lengths[row] / PageSpan.Keys, prepare);
            }

            for (int page = PageSpan.PagesFor(_lengths[row]); page < PageSpan.PagesFor(lengths[i]); page++)
            {
                int rank = OwnerOf(page);
                int slot = _pools[rank].Take();
                prepare(rank, -1, slot);
                _slots[(row * _mostPages) + page] = slot;
            }

            _lengths[row] = lengths[i];
        }
    }

    /// <summary>Gives a row pages of its own for some positions, or changes nothing.</summary>
    /// <param name="row">The row.</param>
    /// <param name="first">First position.</param>
    /// <param name="end">Position after the last.</param>
    /// <param name="prepare">As for <see cref="Extend"/>.</param>
    /// <exception cref="FaultException">A rank has not enough free pages (71); every rank throws it.</exception>
    public void Detach(int row, int first, int end, Action<int, int, int> prepare)
    {
        Array.Clear(_wanted);
        for (int page = first / PageSpan.Keys; page < PageSpan.PagesFor(end); page++)
        {
            _wanted[OwnerOf(page)] += IsShared(row, page) ? 1 : 0;
        }

        RequireFree();
        for (int page = first / PageSpan.Keys; page < PageSpan.PagesFor(end); page++)
        {
            if (IsShared(row, page))
            {
                TakeOwn(row, page, prepare);
            }
        }
    }

    /// <summary>Gives the pages past a length back.</summary>
    public void Truncate(int row, int length)
    {
        for (int page = PageSpan.PagesFor(length); page < PageSpan.PagesFor(_lengths[row]); page++)
        {
            _pools[OwnerOf(page)].Release(SlotOf(row, page));
            Version++;
        }

        _lengths[row] = Math.Min(length, _lengths[row]);
    }

    /// <summary>Makes an empty row share the first pages of another.</summary>
    public void Fork(int from, int to, int length)
    {
        for (int page = 0; page < PageSpan.PagesFor(length); page++)
        {
            int slot = SlotOf(from, page);
            _pools[OwnerOf(page)].Share(slot);
            _slots[(to * _mostPages) + page] = slot;
        }

        _lengths[to] = length;
        Version++;
    }

    // The next token goes into a page that other rows share.
    private bool IsSharedEnd(int row) => _lengths[row] % PageSpan.Keys != 0 && IsShared(row, _lengths[row] / PageSpan.Keys);

    private bool IsShared(int row, int page) => _pools[OwnerOf(page)].UsersOf(SlotOf(row, page)) > 1;

    private void TakeOwn(int row, int page, Action<int, int, int> prepare)
    {
        ref int slot = ref _slots[(row * _mostPages) + page];
        int rank = OwnerOf(page);
        int own = _pools[rank].Take();
        prepare(rank, slot, own);
        _pools[rank].Release(slot);
        slot = own;
        Version++;
    }

    /// <summary><see cref="Extend"/> would find room.</summary>
    public bool HasRoom(ReadOnlySpan<int> rows, ReadOnlySpan<int> lengths)
    {
        FindWanted(rows, lengths);
        for (int rank = 0; rank < _wanted.Length; rank++)
        {
            if (_wanted[rank] > _pools[rank].Free)
            {
                return false;
            }
        }

        return true;
    }

    private void RequireRoom(ReadOnlySpan<int> rows, ReadOnlySpan<int> lengths)
    {
        FindWanted(rows, lengths);
        RequireFree();
    }

    private void FindWanted(ReadOnlySpan<int> rows, ReadOnlySpan<int> lengths)
    {
        Array.Clear(_wanted);
        for (int i = 0; i < rows.Length; i++)
        {
            int row = rows[i];
            for (int page = PageSpan.PagesFor(_lengths[row]); page < PageSpan.PagesFor(lengths[i]); page++)
            {
                _wanted[OwnerOf(page)]++;
            }

            if (lengths[i] > _lengths[row] && IsSharedEnd(row) && !IsLastUser(rows[..i], lengths, row))
            {
                _wanted[OwnerOf(_lengths[row] / PageSpan.Keys)]++;
            }
        }
    }

    private void RequireFree()
    {
        for (int rank = 0; rank < _wanted.Length; rank++)
        {
            if (_wanted[rank] > _pools[rank].Free)
            {
                throw new FaultException(
                    FaultCode.OutOfMemory,
                    $"The cache is full: {_wanted[rank]} more pages of {PageSpan.Keys} tokens are needed on rank {rank}, which has {_pools[rank].Slots} "
                    + $"and {_pools[rank].Free} of them free. Nothing was stored. Truncate or release rows, or give the cache more memory or ranks.")
                { IsAgreed = true };
            }
        }
    }

    // All other rows that share the page got pages of their own before.
    private bool IsLastUser(ReadOnlySpan<int> before, ReadOnlySpan<int> lengths, int row)
    {
        int page = _lengths[row] / PageSpan.Keys;
        int slot = SlotOf(row, page);
        int left = _pools[OwnerOf(page)].UsersOf(slot);
        for (int i = 0; i < before.Length; i++)
        {
            int other = before[i];
            bool leaves = lengths[i] > _lengths[other] && _lengths[other] / PageSpan.Keys == page && _lengths[other] % PageSpan.Keys != 0;
            left -= leaves && SlotOf(other, page) == slot ? 1 : 0;
        }

        return left <= 1;
    }
}

/// <summary>The page slots of one rank: which are free, and how many rows share each. Every rank keeps those of all, and all agree.</summary>
internal sealed class PagePool
{
    private readonly int[] _free;
    private readonly int[] _users;

    /// <summary>A pool in which all slots are free; the lowest are given first.</summary>
    public PagePool(int slots)
    {
        _free = new int[slots];
        _users = new int[slots];
        Free = slots;
        for (int i = 0; i < slots; i++)
        {
            _free[i] = slots - 1 - i;
        }
    }

    /// <summary>All slots.</summary>
    public int Slots => _free.Length;

    /// <summary>Slots that no row uses.</summary>
    public int Free { get; private set; }

    /// <summary>Takes a free slot for one row.</summary>
    public int Take()
    {
        int slot = _free[--Free];
        _users[slot] = 1;
        return slot;
    }

    /// <summary>Rows that share a slot.</summary>
    public int UsersOf(int slot) => _users[slot];

    /// <summary>One more row shares the slot.</summary>
    public void Share(int slot) => _users[slot]++;

    /// <summary>A row does without the slot; nobody's slot is free.</summary>
    public void Release(int slot)
    {
        if (--_users[slot] == 0)
        {
            _free[Free++] = slot;
        }
    }
}

/// <summary>The keys and values that one rank stores of a cache: for each layer a pool of page slots, and how large the numbers of each slot are.</summary>
/// <remarks>A layer's contents are [slots][kv_heads][512][head_dim] keys, then [slots][kv_heads][512][value_dim] values.</remarks>
internal sealed class CacheContents : IDisposable
{
    /// <summary>Floats of one <see cref="PageLimits"/>.</summary>
    public const int FloatsOfLimits = 2;

    private readonly IDevice _device;
    private readonly CacheOptions _options;
    private readonly KeyValueShard[] _layers;
    private readonly int _slots;

    /// <summary>Allocates the pools.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public CacheContents(IDevice device, CacheOptions options, int slots)
    {
        (_device, _options, _slots) = (device, options, slots);
        var shape = new AttentionShape(options.Rows, 1, options.MaxLength, options.KvHeads, options.KvHeads, options.HeadDim, options.ValueDim);
        long elements = slots * (options.KeyPageElements + options.ValuePageElements);
        Plan = new ShardPlan(shape, options.Type, options.ValuesInKeys, elements, 0, options.Scales);
        _layers = new KeyValueShard[options.Layers];
        try
        {
            for (int layer = 0; layer < options.Layers; layer++)
            {
                _layers[layer] = new KeyValueShard(Plan, device.Allocate(Plan.Bytes, options.Type), []);
                long limits = (slots + 1L) * options.KvHeads * FloatsOfLimits; // those behind the last slot stay 0
                _layers[layer] = _layers[layer] with { Growing = device.Allocate(limits * sizeof(float), ElementType.Float32) };
            }
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>Sizes and types, without pages.</summary>
    public ShardPlan Plan { get; }

    /// <summary>A layer's contents and limits, under a plan of these sizes and no pages.</summary>
    public KeyValueShard this[int layer] => _layers[layer];

    /// <summary>The slot behind the last, which holds no key and whose limits are 0: that of pages that a row has not.</summary>
    public int EmptySlot => _slots;

    /// <summary>First key element of a slot.</summary>
    public long KeyOffsetOf(int slot) => slot * _options.KeyPageElements;

    /// <summary>First value element of a slot; that of the keys when values lie in them.</summary>
    public long ValueOffsetOf(int slot) =>
        _options.ValuesInKeys ? KeyOffsetOf(slot) : (_slots * _options.KeyPageElements) + (slot * _options.ValuePageElements);

    /// <summary>Where a token's rows lie.</summary>
    public TokenPlace PlaceOf(int slot, int position)
    {
        int index = position % PageSpan.Keys;
        int valueDim = _options.ValuesInKeys ? _options.HeadDim : _options.ValueDim;
        return new TokenPlace(KeyOffsetOf(slot) + ((long)index * _options.HeadDim), ValueOffsetOf(slot) + ((long)index * valueDim), slot);
    }

    /// <summary>[kv_heads] <see cref="PageLimits"/> of a layer's slot, in the device's memory.</summary>
    public Region LimitsOf(int layer, int slot) =>
        _layers[layer].Growing.Slice((long)slot * _options.KvHeads * FloatsOfLimits, _options.KvHeads * FloatsOfLimits);

    /// <summary>Makes a slot ready for a row: the contents of another one in all layers, or none.</summary>
    public void Prepare(int source, int slot)
    {
        for (int layer = 0; layer < _layers.Length; layer++)
        {
            _device.Copy(LimitsOf(layer, source < 0 ? EmptySlot : source), LimitsOf(layer, slot));
            if (source < 0)
            {
                continue;
            }

            Region contents = _layers[layer].Contents;
            long keys = _options.KeyPageElements;
            _device.Copy(contents.Slice(KeyOffsetOf(source), keys), contents.Slice(KeyOffsetOf(slot), keys));
            if (!_options.ValuesInKeys)
            {
                long values = _options.ValuePageElements;
                _device.Copy(contents.Slice(ValueOffsetOf(source), values), contents.Slice(ValueOffsetOf(slot), values));
            }
        }
    }

    /// <summary>The largest value of all layers, NaN when one is not finite. Waits for the device.</summary>
    public float LargestValue()
    {
        float largest = 0;
        using var host = new HostMemory(_layers[0].Growing.Bytes, ElementType.Float32);
        foreach (KeyValueShard layer in _layers)
        {
            _device.Copy(layer.Growing, host.Region);
            _device.Synchronize();
            foreach (PageLimits limits in host.Region.AsSpan<PageLimits>())
            {
                largest = MathF.Max(largest, limits.LargestValue);
            }
        }

        return largest;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (KeyValueShard? layer in _layers)
        {
            if (layer is not null)
            {
                _device.Free(layer.Contents);
                if (layer.Growing.Bytes > 0)
                {
                    _device.Free(layer.Growing);
                }
            }
        }
    }
}
