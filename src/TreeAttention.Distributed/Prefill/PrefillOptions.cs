namespace TreeAttention.Distributed;

/// <summary>What a prefill attends with: prompts, meaning of attention, how the ranks share the work.</summary>
public sealed record PrefillOptions
{
    /// <summary>How the ranks work together.</summary>
    public PrefillMethod Method { get; init; } = PrefillMethod.Ring;

    /// <summary>[prompts] tokens of each prompt, also none.</summary>
    public required int[] Lengths { get; init; }

    /// <summary>[prompts] the cache's row of each prompt, all different; every row in order when null.</summary>
    public int[]? Rows { get; init; }

    /// <summary>Query heads; a multiple of the cache's KV heads.</summary>
    public required int QueryHeads { get; init; }

    /// <summary>
    /// Scale, window, softcap, ALiBi ([query_heads] or [prompts, query_heads]) and sinks. A prefill is causal whatever is said
    /// here: each query attends to the tokens up to its own.
    /// </summary>
    public AttentionOptions Attention { get; init; } = new();

    /// <summary>Which tokens of each prompt a rank has, with ring and gather: zigzag balances causal work. Every row is dealt by itself.</summary>
    public ShardLayout Layout { get; init; } = ShardLayout.Zigzag;

    /// <summary>Tokens of a chunk, with chunked.</summary>
    public int Chunk { get; init; } = 2048;

    /// <summary>How chunks are attended to, as for <see cref="DecodeOptions.Plan"/>.</summary>
    public AttentionPlan Plan { get; init; } = new(AttentionAlgorithm.Tree, ReductionKind.Auto, QueryPlacement.Replicated);
}
