using System;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Cache;

/// <summary>Reads single tokens of a cache back, and moves them to other positions of their row, between ranks where another one owns the new place.</summary>
internal sealed class TokenMover : IDisposable
{
    private readonly ShardedKvCache _cache;
    private readonly IDevice _device;
    private readonly ITransport _transport;
    private readonly int _heads;
    private readonly int _keyDim;
    private readonly int _valueDim; // 0 when values lie in the keys
    private readonly HostMemory _host;
    private readonly HostMemory _limits; // [kv_heads] of one page
    private readonly float[] _row;
    private Region _token; // [layers][kv_heads][head_dim] keys and [kv_heads][value_dim] values; made when first needed

    public TokenMover(ShardedKvCache cache, RankContext context)
    {
        (_cache, _device, _transport) = (cache, context.Device, context.Transport);
        CacheOptions options = cache.Options;
        (_heads, _keyDim, _valueDim) = (options.KvHeads, options.HeadDim, options.ValuesInKeys ? 0 : options.ValueDim);
        _host = new HostMemory(options.Type.BytesFor((long)_heads * (_keyDim + _valueDim)), options.Type);
        _limits = new HostMemory(cache.Contents.LimitsOf(0, 0).Bytes, ElementType.Float32);
        _row = new float[Math.Max(_keyDim, options.ValueDim)];
    }

    private long TokenElements => (long)_heads * (_keyDim + _valueDim);

    /// <summary>Reads a token that this rank owns.</summary>
    public void Read(int layer, int row, int position, Span<float> key, Span<float> value)
    {
        Region host = _host.Region;
        Gather(layer, PlaceOf(row, position), host);
        _device.Synchronize();
        long keys = (long)_heads * _keyDim;
        ElementConversion.ToFloat(host.Slice(0, keys).AsSpan<byte>(), host.Type, key);
        ElementConversion.ToFloat(host.Slice(keys, host.Count - keys).AsSpan<byte>(), host.Type, value);
        ShardPlan plan = _cache.Contents.Plan;
        for (int head = 0; head < _heads && plan.Scales is not null; head++)
        {
            Scale(key.Slice(head * _keyDim, _keyDim), plan.KeyScaleOf(head));
            Scale(value.Slice(head * _valueDim, _valueDim), plan.ValueScaleOf(head));
        }
    }

    /// <summary>Moves a token, in every layer. Every rank calls it.</summary>
    public void Move(int row, int from, int to)
    {
        int source = _cache.Pages.OwnerOf(from / PageSpan.Keys);
        int target = _cache.Pages.OwnerOf(to / PageSpan.Keys);
        if (_token.Bytes == 0)
        {
            ElementType type = _cache.Options.Type;
            _token = _device.Allocate(type.BytesFor(TokenElements * _cache.Options.Layers), type);
        }

        if (_cache.IsOwn(from / PageSpan.Keys))
        {
            for (int layer = 0; layer < _cache.Options.Layers; layer++)
            {
                Gather(layer, PlaceOf(row, from), _token.Slice(layer * TokenElements, TokenElements));
            }
        }

        if (source != target && _cache.IsOwn(from / PageSpan.Keys))
        {
            _transport.Send(_token, target);
        }

        if (_cache.IsOwn(to / PageSpan.Keys))
        {
            if (source != target)
            {
                _transport.Receive(_token, source);
            }

            for (int layer = 0; layer < _cache.Options.Layers; layer++)
            {
                Scatter(layer, PlaceOf(row, to), _token.Slice(layer * TokenElements, TokenElements));
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _host.Dispose();
        _limits.Dispose();
        if (_token.Bytes > 0)
        {
            _device.Free(_token);
        }
    }

    private static void Scale(Span<float> numbers, float scale) => TensorPrimitives.Multiply(numbers, scale, numbers);

    private TokenPlace PlaceOf(int row, int position) =>
        _cache.Contents.PlaceOf(_cache.Pages.SlotOf(row, position / PageSpan.Keys), position);

    private void Gather(int layer, TokenPlace place, Region into)
    {
        Region contents = _cache.Contents[layer].Contents;
        for (int head = 0; head < _heads; head++)
        {
            _device.Copy(KeyOf(contents, place, head), into.Slice(head * _keyDim, _keyDim));
            if (_valueDim > 0)
            {
                _device.Copy(ValueOf(contents, place, head), into.Slice((_heads * _keyDim) + (head * _valueDim), _valueDim));
            }
        }
    }

    private void Scatter(int layer, TokenPlace place, Region from)
    {
        Region contents = _cache.Contents[layer].Contents;
        ShardPlan plan = _cache.Contents.Plan;
        Region measured = _cache.Contents.LimitsOf(layer, place.Slot);
        _device.Copy(from, _host.Region);
        _device.Copy(measured, _limits.Region);
        _device.Synchronize();
        Span<PageLimits> grown = _limits.Region.AsSpan<PageLimits>();
        for (int head = 0; head < _heads; head++)
        {
            Region key = from.Slice(head * _keyDim, _keyDim);
            _device.Copy(key, KeyOf(contents, place, head));
            ref PageLimits limits = ref grown[head];
            limits = limits.WithKey(Numbers(head * _keyDim, _keyDim), plan.KeyScaleOf(head));
            if (_valueDim > 0)
            {
                int first = (_heads * _keyDim) + (head * _valueDim);
                _device.Copy(from.Slice(first, _valueDim), ValueOf(contents, place, head));
                limits = limits.WithValue(Numbers(first, _valueDim), plan.ValueScaleOf(head));
            }
            else
            {
                limits = limits.WithValue(Numbers(head * _keyDim, _cache.Options.ValueDim), plan.ValueScaleOf(head));
            }
        }

        _device.Copy(_limits.Region, measured);
    }

    private ReadOnlySpan<float> Numbers(int first, int count)
    {
        Span<float> numbers = _row.AsSpan(0, count);
        ElementConversion.ToFloat(_host.Region.Slice(first, count).AsSpan<byte>(), _host.Region.Type, numbers);
        return numbers;
    }

    private Region KeyOf(Region contents, TokenPlace place, int head) =>
        contents.Slice(place.KeyOffset + ((long)head * PageSpan.Keys * _keyDim), _keyDim);

    private Region ValueOf(Region contents, TokenPlace place, int head) =>
        contents.Slice(place.ValueOffset + ((long)head * PageSpan.Keys * _valueDim), _valueDim);
}
