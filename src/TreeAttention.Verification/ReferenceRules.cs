using System;

namespace TreeAttention.Verification;

/// <summary>Which keys one query sees and what is added to their scores: each option's own sentence, for one query and one key at a time.</summary>
/// <remarks>
/// Written from the definition of every option; nothing here is the runtime's. All counting is inside the query's own sequence,
/// a batch row or a packed sequence: its queries are 0 to n_q - 1, its keys 0 to n_k - 1, and the last query stands at the last key.
/// </remarks>
internal sealed class ReferenceRules
{
    private readonly AttentionShape _shape;
    private readonly AttentionOptions _options;
    private readonly int _batch;
    private readonly int _query; // on the query axis
    private readonly int _firstKey; // of the sequence, on the key axis
    private readonly int _keys; // n_k
    private readonly int _queries; // n_q
    private readonly int _sequence; // the batch row, or the packed sequence
    private readonly int _inside; // the query's number in its sequence

    /// <summary>The rules for one query.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="options">Its options.</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="query">The query's index on the query axis.</param>
    public ReferenceRules(AttentionShape shape, AttentionOptions options, int batch, int query)
    {
        (_shape, _options, _batch, _query) = (shape, options, batch, query);
        if (options is { PackedQueries: { } queryBounds, PackedKeys: { } keyBounds })
        {
            while (_sequence < queryBounds.Length - 1 && query >= queryBounds[_sequence + 1])
            {
                _sequence++;
            }

            if (_sequence == queryBounds.Length - 1)
            {
                return; // padding behind the last sequence
            }

            _firstKey = keyBounds[_sequence];
            _keys = keyBounds[_sequence + 1] - keyBounds[_sequence];
            _queries = queryBounds[_sequence + 1] - queryBounds[_sequence];
            _inside = query - queryBounds[_sequence];
        }
        else
        {
            _sequence = batch;
            _keys = options.KeyLengths is null ? shape.KeyLength : options.KeyLengths[batch];
            _queries = options.QueryLengths is null ? shape.QueryLength : options.QueryLengths[batch];
            _inside = query;
        }
    }

    /// <summary>The query is one of its row's: not at or past the row's query length.</summary>
    public bool IsPresent => _inside < _queries;

    /// <summary>Whether the query sees the key at place <paramref name="key"/> of the key axis.</summary>
    public bool Sees(int key)
    {
        int j = key - _firstKey;
        bool isOfSequence = IsPresent && j >= 0 && j < _keys && !IsLeftPadding(j);
        return isOfSequence && IsCausal(j) && IsInWindow(j) && IsInChunk(j) && IsBelowInTree(key, j) && IsKeptByTail(j);
    }

    /// <summary>What is added to the scaled and capped score of a key that the query sees. May be -∞.</summary>
    /// <param name="head">Query head.</param>
    /// <param name="key">The key's place on the key axis.</param>
    public double Bias(int head, int key)
    {
        int j = key - _firstKey;
        double bias = 0;
        if (_options.AlibiSlopes is { } slopes)
        {
            double slope = slopes.Length == _shape.QueryHeads ? slopes[head] : slopes[(_sequence * _shape.QueryHeads) + head];
            bias -= slope * Math.Abs(QueryPosition - KeyPosition(j));
        }

        int column = ColumnOfTail(j, _options.TailBiasLength);
        if (_options.TailBias is { } biases && column >= 0)
        {
            int rows = biases.Length / _options.TailBiasLength;
            int row = rows == _shape.QueryLength ? _query : (_batch * _shape.QueryLength) + _query;
            bias += biases[(row * _options.TailBiasLength) + column];
        }

        return bias;
    }

    private long Shift => (long)_keys - _queries;

    private long QueryPosition => Shift + DepthOf(_inside);

    // A key that is a node of a token tree, one of the last n_q, stands at its depth behind the root; any other at its place.
    private long KeyPosition(int j)
    {
        bool isNode = _options.QueryDepths is not null && j >= Shift;
        return isNode ? Shift + DepthOf((int)(j - Shift)) : j;
    }

    private int DepthOf(int node)
    {
        if (_options.QueryDepths is not { } depths)
        {
            return node;
        }

        return depths.Length == _shape.QueryLength ? depths[node] : depths[(_batch * _shape.QueryLength) + node];
    }

    private bool IsLeftPadding(int j) => _options.KeyStarts is { } starts && j < starts[_batch];

    private bool IsCausal(int j) => !_options.Causal || KeyPosition(j) <= QueryPosition;

    private bool IsInWindow(int j) =>
        (_options.WindowLeft < 0 || KeyPosition(j) >= QueryPosition - _options.WindowLeft)
        && (_options.WindowRight < 0 || KeyPosition(j) <= QueryPosition + _options.WindowRight);

    // The axis is cut into chunks from the first key on that is no padding; query and key stand in the same, the key not behind the query.
    private bool IsInChunk(int j) => _options.LocalChunk <= 0
        || (KeyPosition(j) <= QueryPosition && ChunkOf(KeyPosition(j)) == ChunkOf(QueryPosition));

    private double ChunkOf(long position)
    {
        int padding = _options.KeyStarts is { } starts ? starts[_batch] : 0;
        return Math.Floor((double)(position - padding) / _options.LocalChunk);
    }

    // Depth-first order: the key comes no later than the query, and the query is the key's node or one of its descendants.
    private bool IsBelowInTree(int key, int j)
    {
        if (_options.DfsStart is not { } starts || _options.DfsEnd is not { } ends)
        {
            return true;
        }

        return j <= _inside + Shift && starts[(_batch * _shape.QueryLength) + _query] <= ends[(_batch * _shape.KeyLength) + key];
    }

    private bool IsKeptByTail(int j)
    {
        int column = ColumnOfTail(j, _options.TailMaskLength);
        return _options.TailMask is not { } mask || column < 0
            || mask[(((_batch * _shape.QueryLength) + _query) * _options.TailMaskLength) + column];
    }

    // The tail's last column belongs to the sequence's last key; negative before the tail.
    private int ColumnOfTail(int j, int length) => length - (_keys - j);
}
