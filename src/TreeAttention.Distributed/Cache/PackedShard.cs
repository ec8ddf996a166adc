using System;

namespace TreeAttention.Distributed;

/// <summary>The keys and values that some rows of a cache have on one rank, without gaps: which slots they lie in, and where each comes to lie.</summary>
/// <remarks>
/// First all keys, then all values, page after page in the order of the slots, each [kv_head][keys][dim]. A slot that rows share
/// is there once, with the keys of the row that has most of it. Neighbouring full slots stay neighbours: one copy for all.
/// </remarks>
internal sealed class PackedShard
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
    public PackedShard(CacheOptions options, ShardPlan plan, int slots, int limitSlots)
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
    public long Bytes => (KeyElements + (Keys * _options.ValueFloats)) * _options.Type.SizeInBytes();

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
