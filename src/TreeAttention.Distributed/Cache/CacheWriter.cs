using System;

namespace TreeAttention.Distributed;

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
        RequireStorable(layer, [row], position - _cache.LengthOf(layer, row), tokens, [], TakeKeys(tokens), TakeValues(tokens), isRotated);
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
            PlaceTokens(i * tokens, rows[i], _cache.LengthOf(layer, rows[i]), tokens);
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
            int length = _cache.LengthOf(layer, row) + behind;
            int turn = _cache.TurnOf(row, length + (depths.IsEmpty ? token : depths[i]));
            _check.RequireKey(row, length + token, turn, key.Slice(i * options.KeyFloats, options.KeyFloats), isRotated);
        }

        for (int i = 0; i < rows.Length * tokens; i++)
        {
            int row = rows[i / tokens];
            int position = _cache.LengthOf(layer, row) + behind + (i % tokens);
            _check.RequireValue(row, position, value.Slice(i * options.ValueFloats, options.ValueFloats));
        }
    }
}
