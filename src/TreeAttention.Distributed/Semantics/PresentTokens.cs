using System;
using System.Linq;

namespace TreeAttention.Distributed.Semantics;

/// <summary>Which keys and queries of a call there are: what lies before left padding's end, past lengths or between sequences is absent.</summary>
/// <remarks>Nobody looks at an absent element: it is not read, not refused and not computed with, whatever it is.</remarks>
internal sealed class PresentTokens
{
    private readonly KeyInterval[][] _keys;
    private readonly bool[][] _areSeen;
    private readonly int[] _queries;

    /// <summary>The tokens of a call whose shape and options fit each other.</summary>
    public PresentTokens(AttentionShape shape, AttentionOptions options)
    {
        _queries = [.. Enumerable.Range(0, shape.Batch).Select(batch => options.QueryLengths?[batch] ?? options.PackedQueries?[^1] ?? shape.QueryLength)];
        _keys = options is { PackedQueries: { } queries, PackedKeys: { } keys }
            ? [Sequences(keys)]
            : [.. Enumerable.Range(0, shape.Batch).Select(batch =>
                new[] { Row(options.KeyStarts?[batch] ?? 0, options.KeyLengths?[batch] ?? shape.KeyLength) })];
        _areSeen = options.PackedQueries is { } bounds
            ? [[.. Enumerable.Range(0, bounds.Length - 1).Select(n => bounds[n + 1] > bounds[n])]]
            : [.. _queries.Select(queries => new[] { queries > 0 })];
        AreAllKeys = Array.TrueForAll(_keys, row => row.Sum(keys => keys.End - keys.First) == shape.KeyLength);
    }

    /// <summary>Every key of the tensors belongs to a row or sequence.</summary>
    public bool AreAllKeys { get; }

    /// <summary>Keys of the rows do not begin at the first one, or several sequences share a row.</summary>
    public bool HasStarts => Array.Exists(_keys, row => row.Length > 1 || row[0].First > 0);

    /// <summary>[batch] the keys of each row, ascending: one interval, or one for each packed sequence.</summary>
    public KeyInterval[][] Keys => _keys;

    /// <summary>Queries of a batch row.</summary>
    public int QueriesOf(int batch) => _queries[batch];

    /// <summary>The keys of packed sequences.</summary>
    /// <param name="bounds">[sequences + 1] as <see cref="AttentionOptions.PackedKeys"/>.</param>
    public static KeyInterval[] Sequences(int[] bounds) => [.. Enumerable.Range(0, bounds.Length - 1).Select(n => new KeyInterval(bounds[n], bounds[n + 1]))];

    /// <summary>Whether a key of a batch row is present: some query is of its row or sequence.</summary>
    public bool HasKey(int batch, int position)
    {
        KeyInterval[] row = _keys[batch];
        (int low, int high) = (0, row.Length);
        while (low < high)
        {
            int middle = (low + high) / 2;
            (low, high) = row[middle].End <= position ? (middle + 1, high) : (low, middle);
        }

        return low < row.Length && row[low].First <= position && _areSeen[batch][low];
    }

    private static KeyInterval Row(int first, int end) => new(Math.Min(first, end), end);
}
