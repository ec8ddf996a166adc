namespace TreeAttention.Distributed;

/// <summary>What a decode step attends with: sizes of the queries, meaning of attention, how the ranks meet.</summary>
public sealed record DecodeOptions
{
    /// <summary>Queries of each row in a step.</summary>
    public int QueryLength { get; init; } = 1;

    /// <summary>Query heads; a multiple of the cache's KV heads.</summary>
    public required int QueryHeads { get; init; }

    /// <summary>[batch] the cache's row of each batch row (flash-attn's cache_batch_idx), all different; every row in order when null.</summary>
    public int[]? Rows { get; init; }

    /// <summary>Scale, masks and biases. Lengths of keys follow the cache.</summary>
    public AttentionOptions Attention { get; init; } = new();

    /// <summary>Algorithm and reduction: tree, a ring, or single over a replicated cache; queries are on every rank.</summary>
    public AttentionPlan Plan { get; init; } = new(AttentionAlgorithm.Tree, ReductionKind.Auto, QueryPlacement.Replicated);
}
