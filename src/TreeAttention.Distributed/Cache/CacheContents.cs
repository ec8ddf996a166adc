using System;

namespace TreeAttention.Distributed;

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
