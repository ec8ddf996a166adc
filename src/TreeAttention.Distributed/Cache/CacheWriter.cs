using System;
using System.Numerics.Tensors;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Cache;

/// <summary>Brings new tokens to the device and into their pages.</summary>
internal sealed class CacheWriter : IDisposable
{
    private readonly ShardedKvCache _cache;
    private readonly IDevice _device;
    private readonly RotaryAngles? _angles;
    private readonly DeviceInput _keys;
    private readonly DeviceInput _values;
    private readonly StorageCheck _check;
    private int[] _positions = [];
    private TokenPlace[] _places = [];

    public CacheWriter(ShardedKvCache cache, IDevice device)
    {
        (_cache, _device) = (cache, device);
        _angles = cache.Options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
        _check = new StorageCheck(cache.Options);
        _keys = new DeviceInput(device);
        _values = new DeviceInput(device);
    }

    /// <summary>Makes room for as many tokens at a time, so that storing them allocates nothing.</summary>
    public void Prepare(int tokens)
    {
        TakeKeys(tokens);
        TakeValues(tokens);
        Reserve(tokens);
        _angles?.Reserve(tokens);
    }

    /// <summary>Room for keys that the host writes, before they are stored.</summary>
    public Span<float> TakeKeys(int tokens) => _keys.Take((long)tokens * _cache.Options.KeyFloats);

    /// <summary>Room for values that the host writes; none when they lie in the keys.</summary>
    public Span<float> TakeValues(int tokens) => _values.Take((long)tokens * _cache.Options.ValueFloats);

    /// <summary>Stores what was written, behind the tokens that the rows have in a layer; rotated by depth where there are depths.</summary>
    /// <param name="layer">The layer.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="tokens">Tokens of each.</param>
    /// <param name="depths">[rows, tokens], or none.</param>
    /// <param name="input">Where the tokens were written, if not here: it is told where they go.</param>
    public void Store(int layer, ReadOnlySpan<int> rows, int tokens, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int all = rows.Length * tokens;
        bool isHere = input is null;
        Store(
            layer, rows, tokens, depths, isHere ? _keys.Send((long)all * _cache.Options.KeyFloats) : Region.Empty,
            isHere ? _values.Send((long)all * _cache.Options.ValueFloats) : Region.Empty, input);
    }

    /// <summary>Stores tokens of the device's memory behind those that the rows have in a layer, or tells the step's input that has them where they go.</summary>
    public void Store(int layer, ReadOnlySpan<int> rows, int tokens, ReadOnlySpan<int> depths, Region keys, Region values, IStepInput? input)
    {
        int all = rows.Length * tokens;
        Place(layer, rows, tokens, depths);
        if (input is null)
        {
            Send(layer, all, keys, values, _angles);
            return;
        }

        _angles?.Take(_positions.AsSpan(0, all));
        input.Place(_places.AsSpan(0, all), _angles);
    }

    /// <summary>Stores what was written as tokens of one row from a position on.</summary>
    /// <exception cref="FaultException">A number must not be stored (65).</exception>
    public void StoreAt(int layer, int row, int position, int tokens, bool isRotated)
    {
        RequireStorable(layer, [row], position - _cache.Rows.LengthOf(layer, row), tokens, [], TakeKeys(tokens), TakeValues(tokens), isRotated);
        Reserve(tokens);
        PlaceTokens(0, row, position, tokens);
        Send(
            layer, tokens, _keys.Send((long)tokens * _cache.Options.KeyFloats), _values.Send((long)tokens * _cache.Options.ValueFloats),
            isRotated ? null : _angles);
    }

    /// <summary>Refuses numbers that must not be stored behind the tokens that the rows have in a layer.</summary>
    /// <exception cref="FaultException">Such a number (65).</exception>
    public void RequireStorable(
        int layer, ReadOnlySpan<int> rows, int tokens, ReadOnlySpan<int> depths, ReadOnlySpan<float> key, ReadOnlySpan<float> value) =>
        RequireStorable(layer, rows, 0, tokens, depths, key, value, isRotated: false);

    /// <inheritdoc/>
    public void Dispose()
    {
        _keys.Dispose();
        _values.Dispose();
    }

    private void Place(int layer, ReadOnlySpan<int> rows, int tokens, ReadOnlySpan<int> depths)
    {
        Reserve(rows.Length * tokens);
        for (int i = 0; i < rows.Length; i++)
        {
            PlaceTokens(i * tokens, rows[i], _cache.Rows.LengthOf(layer, rows[i]), tokens);
        }

        for (int i = 0; i < depths.Length; i++)
        {
            _positions[i] += depths[i] - (i % tokens);
        }
    }

    private void Reserve(int tokens)
    {
        if (_places.Length < tokens)
        {
            _places = new TokenPlace[tokens];
            _positions = new int[tokens];
        }
    }

    private void PlaceTokens(int first, int row, int position, int tokens)
    {
        for (int token = 0; token < tokens; token++, position++)
        {
            int page = position / PageSpan.Keys;
            _positions[first + token] = _cache.TurnOf(row, position);
            _places[first + token] = _cache.IsOwn(page)
                ? _cache.Contents.PlaceOf(_cache.Pages.SlotOf(row, page), position)
                : TokenPlace.Elsewhere;
        }
    }

    private void Send(int layer, int tokens, Region keys, Region values, RotaryAngles? angles)
    {
        angles?.Take(_positions.AsSpan(0, tokens));
        _device.Append(new TokenBlock(keys, values, _places, tokens, angles), _cache.Contents[layer]);
    }

    private void RequireStorable(
        int layer, ReadOnlySpan<int> rows, int behind, int tokens, ReadOnlySpan<int> depths, ReadOnlySpan<float> key,
        ReadOnlySpan<float> value, bool isRotated)
    {
        if (_check.AllFit(key, value, isRotated))
        {
            return;
        }

        CacheOptions options = _cache.Options;
        for (int i = 0; i < rows.Length * tokens; i++)
        {
            (int row, int token) = (rows[i / tokens], i % tokens);
            int length = _cache.Rows.LengthOf(layer, row) + behind;
            int turn = _cache.TurnOf(row, length + (depths.IsEmpty ? token : depths[i]));
            _check.RequireKey(row, length + token, turn, key.Slice(i * options.KeyFloats, options.KeyFloats), isRotated);
        }

        for (int i = 0; i < rows.Length * tokens; i++)
        {
            int row = rows[i / tokens];
            int position = _cache.Rows.LengthOf(layer, row) + behind + (i % tokens);
            _check.RequireValue(row, position, value.Slice(i * options.ValueFloats, options.ValueFloats));
        }
    }
}

/// <summary>Appends tokens to the rows of a cache: finds room, refuses what must not be stored, stores, counts.</summary>
internal sealed class CacheAppender(ShardedKvCache cache, CacheRows rows, CacheWriter writer)
{
    private readonly CacheOptions _options = cache.Options;

    /// <summary>A source of tokens is being read.</summary>
    public bool IsReading { get; private set; }

    /// <summary>Appends tokens of the host's memory; where a step's input is given they are only written into it, which then stores them.</summary>
    public void Append(
        int layer, ReadOnlySpan<int> which, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int tokens = TokensIn(which.Length, key.Length, value.Length);
        RequireDepths(which.Length, tokens, depths);
        writer.RequireStorable(layer, which, tokens, depths, key, value);
        rows.MakeRoom(layer, which, tokens);
        try
        {
            Store(layer, which, tokens, key, value, depths, input);
        }
        catch (Exception error)
        {
            GiveBack(layer, which, error);
            throw;
        }

        Advance(layer, which, tokens);
        cache.Bound.Measure(_options.ValuesInKeys ? key : value);
    }

    private void Store(
        int layer, ReadOnlySpan<int> which, int tokens, ReadOnlySpan<float> key, ReadOnlySpan<float> value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        key.CopyTo(input is null ? writer.TakeKeys(which.Length * tokens) : input.Keys);
        value.CopyTo(input is null ? writer.TakeValues(which.Length * tokens) : input.Values);
        writer.Store(layer, which, tokens, depths, input);
    }

    /// <summary>Appends tokens of the device's memory, unchecked; where a step's input is given it has them, and then stores them.</summary>
    public void Append(int layer, ReadOnlySpan<int> which, Region key, Region value, ReadOnlySpan<int> depths, IStepInput? input)
    {
        int tokens = TokensIn(which.Length, key.Count, value.Count);
        RequireDepths(which.Length, tokens, depths);
        rows.MakeRoom(layer, which, tokens);
        try
        {
            writer.Store(layer, which, tokens, depths, key, value, input);
        }
        catch (Exception error)
        {
            GiveBack(layer, which, error);
            throw;
        }

        Advance(layer, which, tokens);
        cache.Bound.Forget();
    }

    /// <inheritdoc cref="ShardedKvCache.AppendShard"/>
    public void AppendShard(int layer, int row, int tokens, ITokenSource source)
    {
        var before = new CacheMark(cache, layer, [row]);
        rows.MakeRoom(layer, [row], tokens);
        try
        {
            StoreOwn(layer, row, tokens, source);
        }
        catch (Exception error)
        {
            before.Restore(error);
            throw;
        }

        rows.Advance(layer, row, tokens);
        cache.Bound.Forget();
    }

    private void StoreOwn(int layer, int row, int tokens, ITokenSource source)
    {
        int first = rows.LengthOf(layer, row);
        for (int position = first; position < first + tokens;)
        {
            int end = Math.Min(first + tokens, (position / PageSpan.Keys * PageSpan.Keys) + PageSpan.Keys);
            if (cache.IsOwn(position / PageSpan.Keys))
            {
                int count = end - position;
                Read(source, row, position, count);
                writer.StoreAt(layer, row, position, count, source.IsRotated);
            }

            position = end;
        }
    }

    private void Read(ITokenSource source, int row, int position, int count)
    {
        Span<float> keys = writer.TakeKeys(count);
        Span<float> values = writer.TakeValues(count);
        IsReading = true;
        try
        {
            for (int i = 0; i < count; i++)
            {
                source.Read(
                    row, position + i, keys.Slice(i * _options.KeyFloats, _options.KeyFloats), values.Slice(i * _options.ValueFloats, _options.ValueFloats));
            }
        }
        finally
        {
            IsReading = false;
        }
    }

    // Nothing was counted yet: only the room is given back.
    private void GiveBack(int layer, ReadOnlySpan<int> which, Exception error)
    {
        if (error is FaultException { Code: FaultCode.DeviceFault })
        {
            cache.Lose(error);
        }

        foreach (int row in which)
        {
            rows.Rewind(layer, row, rows.LengthOf(layer, row));
        }
    }

    private int TokensIn(int count, long keyFloats, long valueFloats)
    {
        long tokens = count == 0 ? 0 : keyFloats / _options.KeyFloats / count;
        if (keyFloats != tokens * count * _options.KeyFloats || valueFloats != tokens * count * _options.ValueFloats || tokens > _options.MaxLength)
        {
            throw new ShapeMismatchException(
                $"{keyFloats} key and {valueFloats} value elements are not the same number of tokens for each of {count} rows: a token has "
                + $"{_options.KvHeads} × {_options.HeadDim} key and {_options.ValueFloats} value elements, and a row at most {_options.MaxLength} tokens.",
                keyFloats != tokens * count * _options.KeyFloats ? "key" : "value");
        }

        return (int)tokens;
    }

    private static void RequireDepths(int count, int tokens, ReadOnlySpan<int> depths)
    {
        if (depths.Length > 0 && depths.Length != count * tokens)
        {
            throw new ShapeMismatchException($"{depths.Length} depths were given for {count} rows × {tokens} tokens.");
        }
    }

    private void Advance(int layer, ReadOnlySpan<int> which, int tokens)
    {
        foreach (int row in which)
        {
            rows.Advance(layer, row, tokens);
        }
    }
}

/// <summary>Refuses numbers that a cache must not store: those that are not finite, or too large for its storage type, also after their rotation.</summary>
/// <param name="options">Storage type, scales, rotation, policy.</param>
internal sealed class StorageCheck(CacheOptions options)
{
    private readonly RotaryAngles? _angles = options.Rotary is { Dim: > 0 } rotary ? new RotaryAngles(rotary) : null;
    private readonly float[] _row = new float[AttentionShape.MaxHeadDim];

    /// <summary>Index of the first query element that is refused; -1 for none.</summary>
    /// <param name="query">Queries, however they are ordered.</param>
    /// <param name="policy">What happens to numbers that are not finite.</param>
    public static int FirstRefused(ReadOnlySpan<float> query, NonFinitePolicy policy)
    {
        if (policy == NonFinitePolicy.Propagate || query.IsEmpty || float.IsFinite(TensorPrimitives.MaxMagnitude(query)))
        {
            return -1;
        }

        int index = 0;
        while (float.IsFinite(query[index]))
        {
            index++;
        }

        return index;
    }

    /// <summary>All of many tokens' numbers can surely be stored; if not, each token has to be looked at.</summary>
    /// <param name="key">[tokens, kv_heads, head_dim]</param>
    /// <param name="value">[tokens, kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <param name="isRotated">Keys are rotated already.</param>
    public bool AllFit(ReadOnlySpan<float> key, ReadOnlySpan<float> value, bool isRotated) =>
        Fits(key, isRotated ? null : _angles, options.Scales is { } scales ? TensorPrimitives.Min<float>(scales.Key) : 1f)
        && Fits(value, null, options.Scales is { } same ? TensorPrimitives.Min<float>(same.Value) : 1f);

    /// <summary>Throws when a token's key must not be stored.</summary>
    /// <param name="row">Row of the cache, for the message.</param>
    /// <param name="position">Position in the row, for the message.</param>
    /// <param name="turn">Position by which the key is rotated.</param>
    /// <param name="key">[kv_heads, head_dim]</param>
    /// <param name="isRotated">It is rotated already.</param>
    /// <exception cref="FaultException">Which number must not be stored, and why (65).</exception>
    public void RequireKey(int row, int position, int turn, ReadOnlySpan<float> key, bool isRotated)
    {
        RotaryAngles? angles = isRotated ? null : _angles;
        for (int head = 0; head < options.KvHeads; head++)
        {
            ReadOnlySpan<float> numbers = key.Slice(head * options.HeadDim, options.HeadDim);
            float scale = options.Scales?.Key[head] ?? 1f;
            if (Fits(numbers, angles, scale))
            {
                continue;
            }

            Span<float> stored = _row.AsSpan(0, numbers.Length);
            numbers.CopyTo(stored);
            if (angles is not null)
            {
                Require("key", row, position, head, stored, ElementType.Float32, scale);
                angles.Take([turn]);
                angles.Turn(stored, 0);
            }

            Require("key", row, position, head, stored, options.Type, scale);
        }
    }

    /// <summary>Throws when a token's value must not be stored.</summary>
    /// <param name="row">Row of the cache, for the message.</param>
    /// <param name="position">Position in the row, for the message.</param>
    /// <param name="value">[kv_heads, value_dim]; empty when values lie in the keys.</param>
    /// <exception cref="FaultException">Which number must not be stored, and why (65).</exception>
    public void RequireValue(int row, int position, ReadOnlySpan<float> value)
    {
        for (int head = 0; head < value.Length / options.ValueDim; head++)
        {
            ReadOnlySpan<float> numbers = value.Slice(head * options.ValueDim, options.ValueDim);
            float scale = options.Scales?.Value[head] ?? 1f;
            if (!Fits(numbers, null, scale))
            {
                Require("value", row, position, head, numbers, options.Type, scale);
            }
        }
    }

    private void Require(string name, int row, int position, int head, ReadOnlySpan<float> elements, ElementType type, float scale)
    {
        for (int dim = 0; dim < elements.Length; dim++)
        {
            if (StorageRange.FaultOf(name, row, position, head, dim, elements[dim], type, options.NonFinite, scale) is { } fault)
            {
                throw fault;
            }
        }
    }

    // A rotated number is at most √2 times as large; whether it really overflows is then seen by rotating it.
    private bool Fits(ReadOnlySpan<float> numbers, RotaryAngles? angles, float scale)
    {
        double growth = angles is null ? 1 : 1.5;
        double largest = numbers.IsEmpty ? 0 : growth * Math.Abs((double)TensorPrimitives.MaxMagnitude(numbers));
        return double.IsFinite(largest) && !StorageRange.Overflows(largest, options.Type, scale);
    }
}
