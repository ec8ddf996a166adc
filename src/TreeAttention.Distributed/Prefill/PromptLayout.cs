using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Prefill;

/// <summary>Prompts as one attention call, and which of their tokens each rank has.</summary>
/// <remarks>
/// Several prompts lie one after the other on one axis, as packed sequences, so that rows of different lengths are neither padded
/// nor dealt unevenly: every row is dealt to the ranks by itself.
/// </remarks>
internal sealed class PromptLayout
{
    private readonly int[] _rows;
    private readonly int[] _bounds; // [prompts + 1] on the common axis

    /// <summary>Lays prompts out.</summary>
    /// <param name="sizes">Sizes of the cache.</param>
    /// <param name="options">The prompts; valid.</param>
    /// <param name="rows">[prompts] the cache's rows.</param>
    public PromptLayout(CacheOptions sizes, PrefillOptions options, int[] rows)
    {
        _rows = rows;
        _bounds = new int[rows.Length + 1];
        for (int row = 0; row < rows.Length; row++)
        {
            _bounds[row + 1] = checked(_bounds[row] + options.Lengths[row]);
        }

        int tokens = _bounds[^1];
        var shape = new AttentionShape(1, tokens, tokens, options.QueryHeads, sizes.KvHeads, sizes.HeadDim, sizes.ValueDim);
        bool isPacked = rows.Length > 1;
        Problem = new AttentionProblem(shape, options.Attention with
        {
            Causal = true,
            PackedQueries = isPacked ? _bounds : null,
            PackedKeys = isPacked ? _bounds : null,
        });
        Shards = isPacked ? new RowwiseLayout(options.Layout, _bounds) : options.Layout;
    }

    /// <summary>The call: one batch row of all tokens.</summary>
    public AttentionProblem Problem { get; }

    /// <summary>Which places of the common axis each rank has, queries as keys.</summary>
    public ShardLayout Shards { get; }

    /// <summary>The tokens of a rank, row after row, in the order in which its pages store them.</summary>
    public IEnumerable<PromptToken> TokensOf(int rank, int ranks) =>
        QueryLayout.IndicesOf(QueryPlacement.Sharded, Shards, Problem.Shape, rank, ranks).Select(TokenAt);

    private PromptToken TokenAt(int place)
    {
        // The last row that begins at or before the place: rows without tokens begin where the next one does.
        int row = Array.BinarySearch(_bounds, place);
        row = row < 0 ? ~row - 1 : Array.LastIndexOf(_bounds, place);
        return new PromptToken(_rows[row], place - _bounds[row]);
    }
}
