using System;

namespace TreeAttention.Distributed;

/// <summary>An interval of key positions: <c>First &lt;= j &lt; End</c>; empty when End &lt;= First.</summary>
public readonly record struct KeyInterval(int First, int End)
{
    /// <summary>No key lies in it.</summary>
    public bool IsEmpty => End <= First;
}

/// <summary>Which key each query sees and what is added to its score: the one place of every mask and bias rule.</summary>
/// <remarks>
/// A query's visible keys are an interval (causal, window, ragged lengths), from which rules that need each key
/// (depth-first order, tail mask) may take more away. Devices skip pages by the interval and test keys only inside it.
/// i is the query's index in its sequence, j the key's position; shift = key_len - query_len of the batch row.
/// </remarks>
public sealed class AttentionMask
{
    private readonly AttentionShape _shape;
    private readonly AttentionOptions _options;

    internal AttentionMask(AttentionShape shape, AttentionOptions options)
    {
        _shape = shape;
        _options = options;
    }

    /// <summary>Beyond the interval, single keys may be hidden: depth-first order or a tail mask.</summary>
    public bool HasKeyRules => _options.DfsStart is not null || _options.TailMask is not null;

    /// <summary>Something is added to scores: ALiBi or a tail bias.</summary>
    public bool HasBias => _options.AlibiSlopes is not null || _options.TailBias is not null;

    /// <summary>Keys of a batch row.</summary>
    public int KeyLength(int batch) => _options.KeyLengths?[batch] ?? _shape.KeyLength;

    /// <summary>Queries of a batch row.</summary>
    public int QueryLength(int batch) => _options.QueryLengths?[batch] ?? _shape.QueryLength;

    /// <summary>Query i of the batch row stands at key position i + shift.</summary>
    public int Shift(int batch) => KeyLength(batch) - QueryLength(batch);

    /// <summary>The interval outside of which query <paramref name="i"/> sees nothing; empty for a query past its row's length.</summary>
    public KeyInterval Visible(int batch, int i)
    {
        if (i >= QueryLength(batch))
        {
            return default;
        }

        long position = (long)i + Shift(batch);
        long first = _options.WindowLeft >= 0 ? position - _options.WindowLeft : 0;
        long end = KeyLength(batch);
        if (_options.Causal || _options.DfsStart is not null)
        {
            end = Math.Min(end, position + 1);
        }

        if (_options.WindowRight >= 0)
        {
            end = Math.Min(end, position + _options.WindowRight + 1);
        }

        return new KeyInterval((int)Math.Max(0, first), (int)Math.Max(0, end));
    }

    /// <summary>The rules that the interval does not hold; <paramref name="j"/> lies inside it.</summary>
    public bool KeepsInside(int batch, int i, int j)
    {
        if (_options.DfsStart is not null && DfsStart(batch, i) > DfsEnd(batch)[j])
        {
            return false;
        }

        if (_options.TailMask is not null)
        {
            int column = TailMaskColumn(batch, j);
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
            bias -= (double)AlibiSlope(batch, head) * Math.Abs((long)i + Shift(batch) - j);
        }

        if (_options.TailBias is not null)
        {
            int column = TailBiasColumn(batch, j);
            bias += column < 0 ? 0 : TailBiasRow(batch, i)[column];
        }

        return bias;
    }

    /// <summary>Adds <see cref="Bias"/> to one query's scores over keys at ascending positions, in fp32.</summary>
    public void AddBias(int batch, int head, int i, ReadOnlySpan<int> positions, Span<float> scores)
    {
        if (_options.AlibiSlopes is not null)
        {
            float slope = AlibiSlope(batch, head);
            int position = i + Shift(batch);
            for (int n = 0; n < positions.Length; n++)
            {
                scores[n] -= slope * Math.Abs((float)(position - positions[n]));
            }
        }

        if (_options.TailBias is not null)
        {
            ReadOnlySpan<float> row = TailBiasRow(batch, i);
            KeyInterval tail = Tail(TailBiasColumn(batch, 0), row.Length, positions);
            for (int n = tail.First; n < tail.End; n++)
            {
                scores[n] += row[TailBiasColumn(batch, positions[n])];
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

        if (_options.TailMask is not null)
        {
            ReadOnlySpan<bool> row = TailMaskRow(batch, i);
            KeyInterval tail = Tail(TailMaskColumn(batch, 0), row.Length, positions);
            for (int n = tail.First; n < tail.End; n++)
            {
                scores[n] = row[TailMaskColumn(batch, positions[n])] ? scores[n] : float.NegativeInfinity;
            }
        }
    }

    /// <summary>The largest finite magnitude that <see cref="Bias"/> can raise scores to between two positions, both included; tail biases of any sign, ALiBi where its slope is negative. NaN and +∞ count, -∞ does not.</summary>
    public double LargestBias(int batch, int head, int i, int first, int last)
    {
        double largest = 0;
        if (_options.AlibiSlopes is not null)
        {
            long position = (long)i + Shift(batch);
            double distance = Math.Max(Math.Abs(position - first), Math.Abs(position - last));
            largest = Math.Max(0, -(double)AlibiSlope(batch, head) * distance);
        }

        if (_options.TailBias is not null)
        {
            ReadOnlySpan<float> row = TailBiasRow(batch, i);
            int from = Math.Max(0, TailBiasColumn(batch, first));
            int end = Math.Min(row.Length, TailBiasColumn(batch, last) + 1);
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

    /// <summary>The head's ALiBi slope; 0 without ALiBi.</summary>
    public float AlibiSlope(int batch, int head)
    {
        if (_options.AlibiSlopes is not { } slopes)
        {
            return 0;
        }

        return slopes.Length == _shape.QueryHeads ? slopes[head] : slopes[(batch * _shape.QueryHeads) + head];
    }

    /// <summary>The query's place in depth-first order.</summary>
    public int DfsStart(int batch, int i) => _options.DfsStart![(batch * _shape.QueryLength) + i];

    /// <summary>[key_len]: the last descendant of each key's node in depth-first order.</summary>
    public ReadOnlySpan<int> DfsEnd(int batch) => _options.DfsEnd.AsSpan(batch * _shape.KeyLength, _shape.KeyLength);

    /// <summary>Column of the tail mask over key <paramref name="j"/>; negative before the tail.</summary>
    public int TailMaskColumn(int batch, int j) => j - KeyLength(batch) + _options.TailMaskLength;

    /// <summary>[tail]: the query's row of the tail mask; true keeps.</summary>
    public ReadOnlySpan<bool> TailMaskRow(int batch, int i) => _options.TailMask.AsSpan(
        ((batch * _shape.QueryLength) + i) * _options.TailMaskLength, _options.TailMaskLength);

    /// <summary>Column of the tail bias over key <paramref name="j"/>; negative before the tail.</summary>
    public int TailBiasColumn(int batch, int j) => j - KeyLength(batch) + _options.TailBiasLength;

    /// <summary>[tail]: the query's row of the tail bias.</summary>
    public ReadOnlySpan<float> TailBiasRow(int batch, int i)
    {
        bool shared = _options.TailBias!.Length == _shape.QueryLength * _options.TailBiasLength;
        int row = shared ? i : (batch * _shape.QueryLength) + i;
        return _options.TailBias.AsSpan(row * _options.TailBiasLength, _options.TailBiasLength);
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
