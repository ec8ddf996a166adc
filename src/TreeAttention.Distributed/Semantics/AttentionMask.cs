using System;
using System.Numerics.Tensors;

namespace TreeAttention.Distributed.Semantics;

/// <summary>Which key each query sees and what is added to its score: the one place of every mask and bias rule.</summary>
/// <remarks>
/// A query's visible keys are an interval (its sequence, causal, window, chunk), from which rules that need each key
/// (depth-first order, tail mask, depths) may take more away. Devices skip pages by the interval and test keys only inside it.
/// i is the query's index on the query axis, j the key's place on the key axis; where they stand to each other is the
/// query's <see cref="QueryPlace"/>, the one thing in which ragged rows, left padding, packed sequences and trees differ.
/// </remarks>
internal sealed class AttentionMask
{
    private readonly AttentionShape _shape;
    private readonly AttentionOptions _options;
    private readonly QueryPlace[]? _places;
    private readonly DfsBlocks? _dfsBlocks;

    internal AttentionMask(AttentionShape shape, AttentionOptions options)
    {
        _shape = shape;
        _options = options;
        _places = options is { PackedQueries: { } queries, PackedKeys: { } keys } ? QueryPlace.OfPacked(queries, keys, shape.QueryLength) : null;
        QueryLengths = options.QueryLengths ?? (options.PackedQueries is { } bounds && bounds[^1] < shape.QueryLength ? [bounds[^1]] : null);
        _dfsBlocks = options.DfsEnd is null ? null : new DfsBlocks(shape, options.DfsEnd);
    }

    /// <summary>Beyond the interval, single keys may be hidden: depth-first order, a tail mask, or causal, window and chunk rules by depth.</summary>
    public bool HasKeyRules => _options.DfsStart is not null || _options.TailMask is not null || HasDepthRules;

    /// <summary>Something is added to scores: ALiBi or a tail bias.</summary>
    public bool HasBias => _options.AlibiSlopes is not null || _options.TailBias is not null;

    /// <summary>[query_len] the place of each query of packed sequences; null where places follow from lengths and depths.</summary>
    public QueryPlace[]? PackedPlaces => _places;

    /// <summary>Keys of a batch row, left padding included.</summary>
    public int KeyLength(int batch) => _options.KeyLengths?[batch] ?? _shape.KeyLength;

    /// <summary>[batch] queries of each row; null where all have as many as there are. The same array each time.</summary>
    public int[]? QueryLengths { get; }

    /// <summary>Queries of a batch row: those of all packed sequences.</summary>
    public int QueryLength(int batch) => QueryLengths?[batch] ?? _shape.QueryLength;

    /// <summary>Where a query stands among the keys: which are its sequence's, and from where causal, window, chunks and ALiBi count.</summary>
    public QueryPlace PlaceOf(int batch, int i)
    {
        if (_places is not null)
        {
            return _places[i];
        }

        int end = KeyLength(batch);
        return new QueryPlace(_options.KeyStarts?[batch] ?? 0, end, end - QueryLength(batch) + DepthOf(batch, i), batch);
    }

    /// <summary>The interval outside of which query <paramref name="i"/> sees nothing; empty for a query past its row's length.</summary>
    public KeyInterval Visible(int batch, int i)
    {
        if (i >= QueryLength(batch))
        {
            return default;
        }

        QueryPlace place = PlaceOf(batch, i);
        long first = _options.WindowLeft >= 0 ? (long)place.Position - _options.WindowLeft : place.First;
        first = _options.LocalChunk > 0 ? Math.Max(first, place.Position - BehindChunkStart(place)) : first;
        if (_options.QueryDepths is not null)
        {
            // Keys of the tree stand in any order of depths; those before it are all at a depth below the query's.
            return new KeyInterval((int)Math.Max(place.First, Math.Min(first, Shift(batch))), place.End);
        }

        long end = place.End;
        if (_options.IsCausal || _options.DfsStart is not null)
        {
            end = Math.Min(end, (long)place.Position + 1);
        }

        if (_options.WindowRight >= 0)
        {
            end = Math.Min(end, (long)place.Position + _options.WindowRight + 1);
        }

        return new KeyInterval((int)Math.Max(place.First, first), (int)Math.Max(0, end));
    }

    /// <summary>The rules that the interval does not hold; <paramref name="j"/> lies inside it.</summary>
    public bool KeepsInside(int batch, int i, int j)
    {
        if (_options.DfsStart is not null && DfsStart(batch, i) > DfsEnd(batch)[j])
        {
            return false;
        }

        if (HasDepthRules && !KeepsDepth(batch, i, j))
        {
            return false;
        }

        if (_options.TailMask is not null)
        {
            int column = j - PlaceOf(batch, i).End + _options.TailMaskLength;
            return column < 0 || TailMaskRow(batch, i)[column];
        }

        return true;
    }

    /// <summary>The whole rule for one query and one key.</summary>
    public bool Keeps(int batch, int i, int j)
    {
        KeyInterval visible = Visible(batch, i);
        return j >= visible.First && j < visible.End && KeepsInside(batch, i, j);
    }

    /// <summary>What is added to the scaled and capped score: ALiBi and the tail bias. May be -∞.</summary>
    public double Bias(int batch, int head, int i, int j)
    {
        double bias = 0;
        if (_options.AlibiSlopes is not null)
        {
            QueryPlace place = PlaceOf(batch, i);
            bias -= (double)AlibiSlope(place, head) * Math.Abs((long)place.Position - KeyPosition(batch, j));
        }

        if (_options.TailBias is not null)
        {
            int column = j - PlaceOf(batch, i).End + _options.TailBiasLength;
            bias += column < 0 ? 0 : TailBiasRow(batch, i)[column];
        }

        return bias;
    }

    /// <summary>Adds <see cref="Bias"/> to one query's scores over keys at ascending positions, in fp32.</summary>
    public void AddBias(int batch, int head, int i, ReadOnlySpan<int> positions, Span<float> scores)
    {
        QueryPlace place = PlaceOf(batch, i);
        if (_options.AlibiSlopes is not null)
        {
            float slope = AlibiSlope(place, head);
            bool hasDepths = _options.QueryDepths is not null;
            for (int n = 0; n < positions.Length; n++)
            {
                int key = hasDepths ? KeyPosition(batch, positions[n]) : positions[n];
                scores[n] -= slope * Math.Abs((float)(place.Position - key));
            }
        }

        if (_options.TailBias is not null)
        {
            ReadOnlySpan<float> row = TailBiasRow(batch, i);
            int origin = _options.TailBiasLength - place.End;
            KeyInterval tail = Tail(origin, row.Length, positions);
            for (int n = tail.First; n < tail.End; n++)
            {
                scores[n] += row[positions[n] + origin];
            }
        }
    }

    /// <summary>Sets one query's scores to -∞ where <see cref="KeepsInside"/> hides the key, over keys at ascending positions.</summary>
    public void Hide(int batch, int i, ReadOnlySpan<int> positions, Span<float> scores)
    {
        if (_options.DfsStart is not null)
        {
            int start = DfsStart(batch, i);
            ReadOnlySpan<int> ends = DfsEnd(batch);
            for (int n = 0; n < positions.Length; n++)
            {
                scores[n] = start > ends[positions[n]] ? float.NegativeInfinity : scores[n];
            }
        }

        if (HasDepthRules)
        {
            for (int n = 0; n < positions.Length; n++)
            {
                scores[n] = KeepsDepth(batch, i, positions[n]) ? scores[n] : float.NegativeInfinity;
            }
        }

        if (_options.TailMask is not null)
        {
            ReadOnlySpan<bool> row = TailMaskRow(batch, i);
            int origin = _options.TailMaskLength - PlaceOf(batch, i).End;
            KeyInterval tail = Tail(origin, row.Length, positions);
            for (int n = tail.First; n < tail.End; n++)
            {
                scores[n] = row[positions[n] + origin] ? scores[n] : float.NegativeInfinity;
            }
        }
    }

    /// <summary>The largest finite magnitude that <see cref="Bias"/> can raise scores to between two positions, both included; tail biases of any sign, ALiBi where its slope is negative. NaN and +∞ count, -∞ does not.</summary>
    public double LargestBias(int batch, int head, int i, int first, int last)
    {
        double largest = 0;
        QueryPlace place = PlaceOf(batch, i);
        if (_options.AlibiSlopes is not null)
        {
            long position = place.Position;
            double distance = Math.Max(Math.Abs(position - first), Math.Abs(position - last));
            distance += _options.QueryDepths is null ? 0 : _shape.QueryLength; // no key of the tree is further from its place
            largest = Math.Max(0, -(double)AlibiSlope(place, head) * distance);
        }

        if (_options.TailBias is not null)
        {
            ReadOnlySpan<float> row = TailBiasRow(batch, i);
            int from = Math.Max(0, first - place.End + row.Length);
            int end = Math.Min(row.Length, last - place.End + row.Length + 1);
            float tail = 0;
            for (int column = from; column < end; column++)
            {
                // A NaN never compares, so it is let through by the negation and stays.
                float magnitude = row[column] == float.NegativeInfinity ? 0 : Math.Abs(row[column]);
                tail = magnitude <= tail ? tail : magnitude;
                if (float.IsNaN(tail))
                {
                    return double.NaN;
                }
            }

            largest += tail;
        }

        return largest;
    }

    /// <summary>The ALiBi slope of a query's row or packed sequence and head; 0 without ALiBi.</summary>
    public float AlibiSlope(QueryPlace place, int head)
    {
        if (_options.AlibiSlopes is not { } slopes)
        {
            return 0;
        }

        return slopes.Length == _shape.QueryHeads ? slopes[head] : slopes[(place.Sequence * _shape.QueryHeads) + head];
    }

    /// <summary>The query's place in depth-first order.</summary>
    public int DfsStart(int batch, int i) => _options.DfsStart![(batch * _shape.QueryLength) + i];

    /// <summary>[batch, ceil(key_len / <see cref="DfsBlocks.Keys"/>)] the largest <see cref="DfsEnd"/> of each block of keys; null without depth-first order.</summary>
    public int[]? DfsPeaks => _dfsBlocks?.Peaks;

    /// <summary>The interval without the blocks at either end that depth-first order hides whole from the query.</summary>
    public KeyInterval WithoutHiddenBlocks(int batch, int i, KeyInterval keys) =>
        _dfsBlocks?.WithoutHidden(batch, DfsStart(batch, i), keys) ?? keys;

    /// <summary>[key_len]: the last descendant of each key's node in depth-first order.</summary>
    public ReadOnlySpan<int> DfsEnd(int batch) => _options.DfsEnd.AsSpan(batch * _shape.KeyLength, _shape.KeyLength);

    /// <summary>[tail]: the query's row of the tail mask; true keeps.</summary>
    public ReadOnlySpan<bool> TailMaskRow(int batch, int i) => _options.TailMask.AsSpan(
        ((batch * _shape.QueryLength) + i) * _options.TailMaskLength, _options.TailMaskLength);

    /// <summary>[tail]: the query's row of the tail bias.</summary>
    public ReadOnlySpan<float> TailBiasRow(int batch, int i)
    {
        bool shared = _options.TailBias!.Length == _shape.QueryLength * _options.TailBiasLength;
        int row = shared ? i : (batch * _shape.QueryLength) + i;
        return _options.TailBias.AsSpan(row * _options.TailBiasLength, _options.TailBiasLength);
    }

    private bool HasDepthRules =>
        _options.QueryDepths is not null && (_options.IsCausal || _options.WindowLeft >= 0 || _options.WindowRight >= 0);

    private int Shift(int batch) => KeyLength(batch) - QueryLength(batch);

    // How far behind the first query of its row a query stands.
    private int DepthOf(int batch, int i)
    {
        if (_options.QueryDepths is not { } depths)
        {
            return i;
        }

        return depths.Length == _shape.QueryLength ? depths[i] : depths[(batch * _shape.QueryLength) + i];
    }

    // How far behind a query its chunk begins. Chunks count from the sequence's first key: one that began before it is cut short, and
    // a node of a tree may stand there.
    private long BehindChunkStart(QueryPlace place)
    {
        long rest = ((long)place.Position - place.First) % _options.LocalChunk;
        return rest < 0 ? rest + _options.LocalChunk : rest;
    }

    // Where key j stands for causal, window, chunks and ALiBi: a key of the tree at its depth, any other at its place.
    private int KeyPosition(int batch, int j)
    {
        int query = QueryOfKey(batch, j);
        return query < 0 ? j : Shift(batch) + DepthOf(batch, query);
    }

    // The query of the tree that key j belongs to; -1 for a key before the tree, or past its row.
    private int QueryOfKey(int batch, int j)
    {
        int query = j - Shift(batch);
        return _options.QueryDepths is not null && query >= 0 && query < QueryLength(batch) ? query : -1;
    }

    // Causal, window and chunks for keys of the tree; for those before it they are in the interval.
    private bool KeepsDepth(int batch, int i, int j)
    {
        int query = QueryOfKey(batch, j);
        if (query < 0)
        {
            return true;
        }

        int behind = DepthOf(batch, i) - DepthOf(batch, query);
        return (!_options.IsCausal || behind >= 0)
            && (_options.LocalChunk <= 0 || behind <= BehindChunkStart(PlaceOf(batch, i)))
            && (_options.WindowLeft < 0 || behind <= _options.WindowLeft)
            && (_options.WindowRight < 0 || -behind <= _options.WindowRight);
    }

    // The part of ascending positions whose columns, position + origin, lie inside a tail of that length.
    private static KeyInterval Tail(int origin, int length, ReadOnlySpan<int> positions)
    {
        int first = 0;
        while (first < positions.Length && positions[first] + origin < 0)
        {
            first++;
        }

        int end = positions.Length;
        while (end > first && positions[end - 1] + origin >= length)
        {
            end--;
        }

        return new KeyInterval(first, end);
    }
}

/// <summary>Blocks of neighbouring keys in depth-first order, of which those that a query cannot see are skipped whole.</summary>
internal sealed class DfsBlocks
{
    /// <summary>Keys of a block.</summary>
    public const int Keys = 64;

    private readonly int _blocks; // of a batch row

    /// <summary>Blocks of all batch rows.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="ends">[batch, key_len] the last descendant of each key's node.</param>
    public DfsBlocks(AttentionShape shape, int[] ends)
    {
        _blocks = (shape.KeyLength + Keys - 1) / Keys;
        Peaks = new int[shape.Batch * _blocks];
        for (int i = 0; i < Peaks.Length; i++)
        {
            int first = i % _blocks * Keys;
            int count = Math.Min(Keys, shape.KeyLength - first);
            Peaks[i] = TensorPrimitives.Max<int>(ends.AsSpan((i / _blocks * shape.KeyLength) + first, count));
        }
    }

    /// <summary>[batch, blocks] the largest end of each block.</summary>
    public int[] Peaks { get; }

    /// <summary>The interval without the blocks at either end of which a query sees no key.</summary>
    /// <param name="batch">The batch row.</param>
    /// <param name="start">The query's place in depth-first order.</param>
    /// <param name="keys">The interval.</param>
    public KeyInterval WithoutHidden(int batch, int start, KeyInterval keys)
    {
        if (keys.IsEmpty)
        {
            return keys;
        }

        ReadOnlySpan<int> peaks = Peaks.AsSpan(batch * _blocks, _blocks);
        int first = keys.First / Keys;
        int last = (keys.End - 1) / Keys;
        while (first <= last && start > peaks[first])
        {
            first++;
        }

        while (last >= first && start > peaks[last])
        {
            last--;
        }

        return new KeyInterval(Math.Max(keys.First, first * Keys), Math.Min(keys.End, (last + 1) * Keys));
    }
}

/// <summary>An interval of key positions: <c>First &lt;= j &lt; End</c>; empty when End &lt;= First.</summary>
internal readonly record struct KeyInterval(int First, int End)
{
    /// <summary>No key lies in it.</summary>
    public bool IsEmpty => End <= First;
}

/// <summary>Where one query stands among the keys: the keys of its sequence, and its own position.</summary>
/// <remarks>Blittable, 16 bytes; devices keep tables of it.</remarks>
/// <param name="First">Its sequence's first key.</param>
/// <param name="End">One past its sequence's last key.</param>
/// <param name="Position">
/// Where the query itself stands on the key axis: what causal, window, chunks and ALiBi count from. The last query of a sequence stands at its last key.
/// </param>
/// <param name="Sequence">The batch row, or the packed sequence.</param>
internal readonly record struct QueryPlace(int First, int End, int Position, int Sequence)
{
    /// <summary>[queries] the places of packed sequences.</summary>
    /// <param name="queryBounds">[sequences + 1] as <see cref="AttentionOptions.PackedQueries"/>.</param>
    /// <param name="keyBounds">[sequences + 1] as <see cref="AttentionOptions.PackedKeys"/>.</param>
    /// <param name="queries">All queries; those behind the last sequence are in none.</param>
    internal static QueryPlace[] OfPacked(ReadOnlySpan<int> queryBounds, ReadOnlySpan<int> keyBounds, int queries)
    {
        var places = new QueryPlace[queries];
        for (int sequence = 0; sequence < queryBounds.Length - 1; sequence++)
        {
            for (int i = queryBounds[sequence]; i < queryBounds[sequence + 1]; i++)
            {
                int fromLast = queryBounds[sequence + 1] - i;
                places[i] = new QueryPlace(keyBounds[sequence], keyBounds[sequence + 1], keyBounds[sequence + 1] - fromLast, sequence);
            }
        }

        return places;
    }
}
