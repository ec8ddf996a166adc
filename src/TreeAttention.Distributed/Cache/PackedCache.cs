using System;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>What some rows of a growing cache have on each rank, as messages: keys and values without gaps, and the limits of their pages.</summary>
/// <remarks>
/// Every rank has the page table of all ranks, so it knows what each of them packs. A message is the limits, [slots, kv_heads],
/// then the keys, then the values. Contents begin at the same place of every room, and the limits end there: so the addresses
/// stay, whatever grows.
/// </remarks>
internal sealed class PackedCache : TravellingShards
{
    private const int Alignment = 64;

    private readonly ShardedKvCache _cache;
    private readonly int[] _rows;
    private readonly int[] _lengths; // [batch], the view's own
    private readonly int[] _packedLengths;
    private readonly PackedShard[] _shards; // [ranks]
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
    public PackedCache(ShardedKvCache cache, int[] rows, int[] lengths, AttentionShape shape)
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
        RoomBytes = Aligned(_contentsFirst + (elements * _type.SizeInBytes()));
        _shards = [.. Enumerable.Range(0, cache.Ranks).Select(rank => new PackedShard(
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
        _joined = new ShardPlan(shape, _type, options.ValuesInKeys, contents / _type.SizeInBytes(), options.MostPages, options.Scales);
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
        foreach (PackedShard shard in _shards)
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
            long first = ((rank * RoomBytes) + _contentsFirst) / _type.SizeInBytes();
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
