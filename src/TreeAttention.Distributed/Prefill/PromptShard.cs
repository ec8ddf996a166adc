using System;
using System.Collections.Generic;

namespace TreeAttention.Distributed;

/// <summary>A rank's share of the prompts' keys and values as a shard that rings and gathers move: rotated, in the storage type, nothing padded.</summary>
/// <remarks>
/// Devices write tokens into pages of a cache, which have room for 512. Whole pages of a shard are like that and are written in
/// place; others are written to a slot beside them, and their heads moved together.
/// </remarks>
internal sealed class PromptShard : IDisposable
{
    private readonly IDevice _device;
    private readonly CacheContents _parts; // a slot for each page that is not whole
    private readonly List<int> _partPages = [];
    private readonly Region _contents;
    private readonly Region _limits; // [pages, kv_heads]
    private readonly HostMemory _none;
    private readonly HostMemory _measured;
    private readonly TokenPlace[] _wholePlaces; // [tokens]
    private readonly TokenPlace[] _partPlaces;  // [tokens]

    /// <summary>Makes room for a share.</summary>
    /// <param name="device">The rank's device.</param>
    /// <param name="plan">The share's pages, of one batch row.</param>
    /// <param name="options">Sizes and types of the cache.</param>
    public PromptShard(IDevice device, ShardPlan plan, CacheOptions options)
    {
        (_device, Plan) = (device, plan);
        int tokens = 0;
        for (int page = 0; page < plan.Pages.Count; page++)
        {
            tokens += plan.Pages[page].Span.Count;
            if (plan.Pages[page].Span.Count < PageSpan.Keys)
            {
                _partPages.Add(page);
            }
        }

        _wholePlaces = new TokenPlace[tokens];
        _partPlaces = new TokenPlace[tokens];
        long limitBytes = (long)plan.Pages.Count * plan.Shape.KvHeads * CacheContents.FloatsOfLimits * sizeof(float);
        _none = new HostMemory(limitBytes, ElementType.Float32);
        _measured = new HostMemory(limitBytes, ElementType.Float32);
        _contents = device.Allocate(plan.Bytes, plan.Type);
        _limits = device.Allocate(limitBytes, ElementType.Float32);
        _parts = new CacheContents(device, options with { Layers = 1 }, _partPages.Count);
        PlaceTokens();
    }

    /// <summary>The share's pages.</summary>
    public ShardPlan Plan { get; }

    /// <summary>What travels.</summary>
    public Region Contents => _contents;

    /// <summary>Writes all tokens of the share.</summary>
    /// <param name="keys">[tokens, kv_heads, head_dim] fp32 in the device's memory, in the order of the plan.</param>
    /// <param name="values">[tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="angles">[tokens] by which keys are rotated; null for none.</param>
    /// <returns>[pages, kv_heads] how large the stored numbers are.</returns>
    public PageLimits[] Fill(Region keys, Region values, RotaryAngles? angles)
    {
        int tokens = _wholePlaces.Length;
        if (tokens == 0)
        {
            return [];
        }

        _device.Copy(_none.Region, _limits);
        if (_partPages.Count < Plan.Pages.Count)
        {
            _device.Append(new TokenBlock(keys, values, _wholePlaces, tokens, angles), new KeyValueShard(Plan, _contents, []) { Growing = _limits });
        }

        if (_partPages.Count > 0)
        {
            _device.Append(new TokenBlock(keys, values, _partPlaces, tokens, angles), _parts[0] with { Growing = _limits });
            MoveParts();
        }

        _device.Copy(_limits, _measured.Region);
        _device.Synchronize();
        return _measured.Region.AsSpan<PageLimits>().ToArray();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _parts.Dispose();
        _device.Free(_limits);
        _device.Free(_contents);
        _measured.Dispose();
        _none.Dispose();
    }

    private void PlaceTokens()
    {
        int token = 0;
        for (int page = 0; page < Plan.Pages.Count; page++)
        {
            KeyPage entry = Plan.Pages[page];
            int slot = _partPages.IndexOf(page);
            for (int i = 0; i < entry.Span.Count; i++, token++)
            {
                _wholePlaces[token] = slot >= 0
                    ? TokenPlace.Elsewhere
                    : new TokenPlace(entry.KeyOffset + ((long)i * Plan.Shape.HeadDim), entry.ValueOffset + ((long)i * Plan.ValueStride), page);
                _partPlaces[token] = slot < 0 ? TokenPlace.Elsewhere : _parts.PlaceOf(slot, i) with { Slot = page };
            }
        }
    }

    private void MoveParts()
    {
        Region parts = _parts[0].Contents;
        for (int slot = 0; slot < _partPages.Count; slot++)
        {
            KeyPage page = Plan.Pages[_partPages[slot]];
            MoveHeads(parts, _parts.KeyOffsetOf(slot), page.KeyOffset, page.Span.Count, Plan.Shape.HeadDim);
            if (!Plan.ValuesInKeys)
            {
                MoveHeads(parts, _parts.ValueOffsetOf(slot), page.ValueOffset, page.Span.Count, Plan.Shape.ValueDim);
            }
        }
    }

    private void MoveHeads(Region parts, long from, long to, int count, int dim)
    {
        for (int head = 0; head < Plan.Shape.KvHeads; head++)
        {
            _device.Copy(
                parts.Slice(from + ((long)head * PageSpan.Keys * dim), (long)count * dim), _contents.Slice(to + ((long)head * count * dim), (long)count * dim));
        }
    }
}
