using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>Everything <c>treeattn decode</c> was asked.</summary>
internal sealed record DecodeRequest
{
    /// <summary>Real inputs; null: synthetic ones of the sizes below.</summary>
    public TensorRequest? Tensors { get; init; }

    /// <summary>Storage of synthetic keys and values.</summary>
    public ElementType StorageType { get; init; }

    /// <summary>Scales of synthetic keys and values.</summary>
    public required ScalesRequest Scales { get; init; }

    public NonFinitePolicy NonFinite { get; init; }

    public required SemanticsRequest Semantics { get; init; }

    public RotaryOptions? Rotary { get; init; }

    public required PlanRequest Plan { get; init; }

    /// <summary>How the queries of the context are attended to; null: the context is only stored.</summary>
    public PrefillMethod? Prefill { get; init; }

    /// <summary>Tokens of a chunk of prefill.</summary>
    public int Chunk { get; init; }

    /// <summary>Keys before the first step; null where files decide.</summary>
    public int? Context { get; init; }

    /// <summary>Steps; null where files decide.</summary>
    public int? Steps { get; init; }

    /// <summary>New tokens, and queries, of each row in a step.</summary>
    public int QueryLength { get; init; }

    public int Batch { get; init; }

    public int Heads { get; init; }

    public int KvHeads { get; init; }

    public int HeadDim { get; init; }

    public int ValueDim { get; init; }

    /// <summary>Layers, each with keys and values of its own.</summary>
    public int Layers { get; init; }

    /// <summary>Memory of each rank for keys and values; null: room for every row at its longest.</summary>
    public CacheMemory? CacheMemory { get; init; }

    /// <summary>Attention calls before the first step, which append nothing.</summary>
    public int Warmup { get; init; }

    public string? Output { get; init; }

    public string? Lse { get; init; }

    public bool Force { get; init; }

    public bool Verify { get; init; }

    public bool Json { get; init; }
}
