using System;
using TreeAttention.Distributed.Layout;

namespace TreeAttention.Distributed.Cache;

/// <summary>What a layer of a cache held before a step began: a step that fails in the middle puts it back.</summary>
/// <remarks>
/// Lengths, pages and the bound of the values are those of before; what was written behind the lengths is never looked at. After a fault of the
/// device nobody knows what its memory holds: the cache is lost then. Marking allocates nothing.
/// </remarks>
internal readonly struct CacheMark
{
    private readonly ShardedKvCache _cache;
    private readonly int _layer;
    private readonly int[] _rows;
    private readonly int[]? _lengths; // [rows]
    private readonly int _first;      // length of the first row, where all rows take as many tokens
    private readonly PageLimits _bound;

    /// <summary>Before a step that gives every row as many tokens.</summary>
    public CacheMark(ShardedKvCache cache, int layer, int[] rows)
    {
        (_cache, _layer, _rows) = (cache, layer, rows);
        _first = cache.Rows.LengthOf(layer, rows[0]);
        _bound = cache.Bound.Limits[0];
    }

    /// <summary>Before a step that gives each row its own number of tokens.</summary>
    public CacheMark(ShardedKvCache cache, int layer, int[] rows, int[] lengths)
    {
        (_cache, _layer, _rows, _lengths) = (cache, layer, rows, lengths);
        for (int i = 0; i < rows.Length; i++)
        {
            lengths[i] = cache.Rows.LengthOf(layer, rows[i]);
        }

        _bound = cache.Bound.Limits[0];
    }

    /// <summary>Puts back what was there, after a step that failed.</summary>
    public void Restore(Exception error)
    {
        if (error is FaultException { Code: FaultCode.DeviceFault })
        {
            _cache.Lose(error);
            return;
        }

        int tokens = _lengths is null ? _cache.Rows.LengthOf(_layer, _rows[0]) - _first : 0;
        for (int i = 0; i < _rows.Length; i++)
        {
            _cache.Rows.Rewind(_layer, _rows[i], _lengths?[i] ?? _cache.Rows.LengthOf(_layer, _rows[i]) - tokens);
        }

        _cache.Bound.Limits[0] = _bound;
    }
}
