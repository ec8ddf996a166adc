using System;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Steps;

namespace TreeAttention.Distributed.Cache;

/// <summary>What some rows of a growing cache have on each rank, as messages: keys and values without gaps, and the limits of their pages.</summary>
/// <remarks>
/// Every rank has the page table of all ranks, so it knows what each of them packs. A message is the limits, [slots, kv_heads],
/// then the keys, then the values. Contents begin at the same place of every room, and the limits end there: so the addresses
/// stay, whatever grows.
/// </remarks>
internal sealed class TravellingCache : TravellingShards
{
    private const int Alignment = 64;

    private readonly ShardedKvCache _cache;
    private readonly int[] _rows;
    private readonly int[] _lengths; // [batch], the view's own
    private readonly int[] _packedLengths;
    private readonly TravellingShard[] _shards; // [ranks]
    private readonly int[] _pages; // [ranks] scratch
    private readonly int _limitSlots;
    private readonly long _limitBytes;
    private readonly long _contentsFirst; // byte of a room
    private readonly ElementType _type;
    private long _version = -1;
    private ShardPlan? _joined; // over the rooms of all ranks

    /// <summary>Rows of a cache as messages.</summary>
    /// <param name="cache">The cache.</param>
    /// <param name="rows">The row of each batch row.</param>
    /// <param name="lengths">[batch] tokens of each row now; changed in place by who follows the cache.</param>
    /// <param name="shape">Sizes of the call.</param>
    public TravellingCache(ShardedKvCache cache, int[] rows, int[] lengths, AttentionShape shape)
    {
        (_cache, _rows, _lengths, _type) = (cache, rows, lengths, cache.Options.Type);
        _packedLengths = new int[rows.Length];
        _pages = new int[cache.Ranks];
        CacheOptions options = cache.Options;
        CountPages(options.MostPages);
        _limitSlots = Enumerable.Range(0, cache.Ranks).Max(rank => (int)Math.Min(cache.Pages.SlotsOn(rank), (long)rows.Length * _pages[rank]));
        _limitBytes = LimitBytesOf(_limitSlots);
        _contentsFirst = Aligned(_limitBytes);
        long elements = _limitSlots * (options.KeyPageElements + options.ValuePageElements);
        RoomBytes = Aligned(_contentsFirst + _type.BytesFor(elements));
        _shards = [.. Enumerable.Range(0, cache.Ranks).Select(rank => new TravellingShard(
            options,
            new ShardPlan(shape, _type, options.ValuesInKeys, elements, _pages[rank], options.Scales),
            cache.Pages.SlotsOn(rank),
            _limitSlots))];
    }

    /// <inheritdoc/>
    public override long RoomBytes { get; }

    /// <inheritdoc/>
    /// <remarks>The limits of all ranks lie behind their rooms.</remarks>
    public override long RoomsBytes => _shards.Length * (RoomBytes + _limitBytes);

    /// <inheritdoc/>
    public override void RequireMemory(RankContext context, long bytes)
    {
        if (bytes > 0)
        {
            CacheCapacity.RequireBeside(context, _cache, bytes);
        }
    }

    /// <inheritdoc/>
    public override KeyValueShard ShardIn(Region room, int rank) =>
        new(_shards[rank].Plan, ContentsOf(room), []) { Growing = LimitsOf(room) with { Type = ElementType.Float32 } };

    /// <inheritdoc/>
    public override Region MessageIn(Region room, int rank)
    {
        long limits = LimitBytesOf(_shards[rank].Slots);
        return room.Slice(_contentsFirst - limits, limits + _shards[rank].Bytes);
    }

    /// <inheritdoc/>
    public override Region Pack(IDevice device, KeyValueShard own, Region room)
    {
        Follow();
        int rank = _cache.Rank;
        long bytes = LimitBytesOf(_shards[rank].Slots);
        Region limits = room.Slice(_contentsFirst - bytes, bytes) with { Type = ElementType.Float32 };
        _shards[rank].Pack(device, own, ContentsOf(room), limits);
        return MessageIn(room, rank);
    }

    /// <inheritdoc/>
    public override Region RoomIn(Region rooms, int rank) => rooms.Slice(rank * RoomBytes, RoomBytes);

    /// <inheritdoc/>
    public override KeyValueShard JoinedIn(Region rooms)
    {
        CacheOptions options = _cache.Options;
        long contents = _shards.Length * RoomBytes;
        AttentionShape shape = _shards[0].Plan.Shape;
        _joined = new ShardPlan(shape, _type, options.ValuesInKeys, StorageType.Of(_type).CountIn(contents), options.MostPages, options.Scales);
        return new KeyValueShard(_joined, rooms.Slice(0, contents) with { Type = _type }, [])
        {
            Growing = rooms.Slice(contents, rooms.Bytes - contents) with { Type = ElementType.Float32 },
        };
    }

    /// <inheritdoc/>
    public override void Join(IDevice device, Region rooms)
    {
        for (int rank = 0; rank < _shards.Length; rank++)
        {
            device.Copy(LimitsOf(RoomIn(rooms, rank)), rooms.Slice((_shards.Length * RoomBytes) + (rank * _limitBytes), _limitBytes));
        }
    }

    private static long Aligned(long bytes) => (bytes + Alignment - 1) / Alignment * Alignment;

    private Region LimitsOf(Region room) => room.Slice(_contentsFirst - _limitBytes, _limitBytes);

    private Region ContentsOf(Region room) => room.Slice(_contentsFirst, _shards[0].Plan.Bytes) with { Type = _type };

    private long LimitBytesOf(int slots) => (long)slots * _cache.Options.KvHeads * CacheContents.FloatsOfLimits * sizeof(float);

    private void Follow()
    {
        if (_version == _cache.Pages.Version && _lengths.AsSpan().SequenceEqual(_packedLengths))
        {
            return;
        }

        _version = _cache.Pages.Version;
        _lengths.CopyTo(_packedLengths, 0);
        foreach (TravellingShard shard in _shards)
        {
            shard.Clear();
        }

        int most = 0;
        for (int batch = 0; batch < _rows.Length; batch++)
        {
            int pages = PageSpan.PagesFor(_lengths[batch]);
            most = Math.Max(most, pages);
            for (int page = 0; page < pages; page++)
            {
                _shards[_cache.Pages.OwnerOf(page)].Hold(_cache.Pages.SlotOf(_rows[batch], page), KeysOf(batch, page));
            }
        }

        CountPages(most);
        for (int rank = 0; rank < _shards.Length; rank++)
        {
            _shards[rank].Settle(_pages[rank]);
        }

        _joined?.Grow(most);
        for (int batch = 0; batch < _rows.Length; batch++)
        {
            FillPages(batch, most);
        }
    }

    private void FillPages(int batch, int pages)
    {
        Array.Clear(_pages);
        for (int page = 0; page < pages; page++)
        {
            int rank = _cache.Pages.OwnerOf(page);
            int keys = KeysOf(batch, page);
            int slot = keys == 0 ? 0 : _cache.Pages.SlotOf(_rows[batch], page);
            var span = new PageSpan(KeyRun.Contiguous(page * PageSpan.Keys, PageSpan.Keys), 0, keys);
            KeyPage place = _shards[rank].PageOf(batch, span, slot);
            _shards[rank].Plan.Fill(_pages[rank]++, place);
            long first = StorageType.Of(_type).CountIn((rank * RoomBytes) + _contentsFirst);
            _joined?.Fill(
                page, place with { KeyOffset = first + place.KeyOffset, ValueOffset = first + place.ValueOffset, Slot = (rank * _limitSlots) + place.Slot });
        }
    }

    // How many of the first pages each rank has.
    private void CountPages(int pages)
    {
        Array.Clear(_pages);
        for (int page = 0; page < pages; page++)
        {
            _pages[_cache.Pages.OwnerOf(page)]++;
        }
    }

    private int KeysOf(int batch, int page) => Math.Clamp(_lengths[batch] - (page * PageSpan.Keys), 0, PageSpan.Keys);
}

/// <summary>The keys and values that some rows of a cache have on one rank, without gaps: which slots they lie in, and where each comes to lie.</summary>
/// <remarks>
/// First all keys, then all values, page after page in the order of the slots, each [kv_head][keys][dim]. A slot that rows share
/// is there once, with the keys of the row that has most of it. Neighbouring full slots stay neighbours: one copy for all.
/// </remarks>
internal sealed class TravellingShard
{
    private readonly CacheOptions _options;
    private readonly int _limitSlots;
    private readonly int[] _filled;  // [slots] keys, 0 where the rows have none
    private readonly long[] _starts; // [slots] keys before
    private readonly int[] _places;  // [slots] used slots before

    /// <summary>Nothing yet.</summary>
    /// <param name="options">Sizes of the cache.</param>
    /// <param name="plan">A plan without pages over the room that the shard is packed into.</param>
    /// <param name="slots">Slots of the rank.</param>
    /// <param name="limitSlots">Slots that the limits have room for: those of the packed ones are the last of them.</param>
    public TravellingShard(CacheOptions options, ShardPlan plan, int slots, int limitSlots)
    {
        (_options, Plan, _limitSlots) = (options, plan, limitSlots);
        _filled = new int[slots];
        _starts = new long[slots];
        _places = new int[slots];
    }

    /// <summary>The pages, changed in place.</summary>
    public ShardPlan Plan { get; }

    /// <summary>Slots that are packed.</summary>
    public int Slots { get; private set; }

    /// <summary>Bytes of the packed keys and values.</summary>
    public long Bytes => _options.Type.BytesFor(KeyElements + (Keys * _options.ValueFloats));

    private long Keys { get; set; }

    private long KeyElements => Keys * _options.KeyFloats;

    /// <summary>Forgets all slots.</summary>
    public void Clear() => Array.Clear(_filled);

    /// <summary>Says that a row has the first keys of a slot.</summary>
    public void Hold(int slot, int keys) => _filled[slot] = Math.Max(_filled[slot], keys);

    /// <summary>Gives each slot its place, when all are known; the plan's pages are filled afterwards.</summary>
    public void Settle(int pagesPerBatch)
    {
        (Slots, Keys) = (0, 0);
        for (int slot = 0; slot < _filled.Length; slot++)
        {
            _starts[slot] = Keys;
            _places[slot] = Slots;
            Keys += _filled[slot];
            Slots += _filled[slot] > 0 ? 1 : 0;
        }

        Plan.Grow(pagesPerBatch);
    }

    /// <summary>Where a row's page lies.</summary>
    public KeyPage PageOf(int batch, PageSpan span, int slot)
    {
        long first = _starts[slot];
        long keyOffset = first * _options.KeyFloats;
        long valueOffset = _options.ValuesInKeys ? keyOffset : KeyElements + (first * _options.ValueFloats);
        return new KeyPage(batch, span, keyOffset, valueOffset, _filled[slot], _limitSlots - Slots + _places[slot]);
    }

    /// <summary>Copies a layer's keys, values and limits together.</summary>
    /// <param name="device">Copies.</param>
    /// <param name="from">The layer.</param>
    /// <param name="contents">Room for the keys and values.</param>
    /// <param name="limits">[packed slots, kv_heads] room for the limits.</param>
    public void Pack(IDevice device, KeyValueShard from, Region contents, Region limits)
    {
        int limitFloats = _options.KvHeads * CacheContents.FloatsOfLimits;
        for (int slot = NextHeld(0); slot < _filled.Length;)
        {
            int end = EndOfRun(slot, least: 1);
            device.Copy(
                from.Growing.Slice((long)slot * limitFloats, (long)(end - slot) * limitFloats),
                limits.Slice((long)_places[slot] * limitFloats, (long)(end - slot) * limitFloats));
            slot = NextHeld(end);
        }

        Region keys = from.Contents.Slice(0, _filled.Length * _options.KeyPageElements);
        Pack(device, keys, contents.Slice(0, KeyElements), _options.HeadDim);
        if (!_options.ValuesInKeys)
        {
            Region values = from.Contents.Slice(keys.Count, _filled.Length * _options.ValuePageElements);
            Pack(device, values, contents.Slice(KeyElements, Keys * _options.ValueFloats), _options.ValueDim);
        }
    }

    private void Pack(IDevice device, Region from, Region to, int dim)
    {
        int row = _options.KvHeads * dim;
        for (int slot = NextHeld(0); slot < _filled.Length;)
        {
            int end = EndOfRun(slot, PageSpan.Keys);
            long source = (long)slot * PageSpan.Keys * row;
            long target = _starts[slot] * row;
            if (end > slot)
            {
                long count = (long)(end - slot) * PageSpan.Keys * row;
                device.Copy(from.Slice(source, count), to.Slice(target, count));
                slot = NextHeld(end);
                continue;
            }

            long part = (long)_filled[slot] * dim;
            for (int head = 0; head < _options.KvHeads; head++)
            {
                device.Copy(from.Slice(source + ((long)head * PageSpan.Keys * dim), part), to.Slice(target + (head * part), part));
            }

            slot = NextHeld(slot + 1);
        }
    }

    private int NextHeld(int slot)
    {
        while (slot < _filled.Length && _filled[slot] == 0)
        {
            slot++;
        }

        return slot;
    }

    // The slot after those from this one on that have at least so many keys.
    private int EndOfRun(int slot, int least)
    {
        while (slot < _filled.Length && _filled[slot] >= least)
        {
            slot++;
        }

        return slot;
    }
}
