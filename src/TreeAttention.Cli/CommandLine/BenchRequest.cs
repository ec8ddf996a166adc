using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>Everything <c>treeattn bench</c> was asked.</summary>
internal sealed record BenchRequest
{
    /// <summary>Real inputs; null: synthetic ones of the sizes below.</summary>
    public TensorRequest? Tensors { get; init; }

    public ElementType StorageType { get; init; }

    /// <summary>Scales of f8e4m3 storage.</summary>
    public required ScalesRequest Scales { get; init; }

    public required SemanticsRequest Semantics { get; init; }

    public required PlanRequest Plan { get; init; }

    /// <summary>Smallest context.</summary>
    public int Begin { get; init; }

    /// <summary>Largest context.</summary>
    public int End { get; init; }

    public int Factor { get; init; }

    public int Iterations { get; init; }

    public int Warmup { get; init; }

    public bool Check { get; init; }

    public int Batch { get; init; }

    /// <summary>Queries of a row; 0: as many as keys.</summary>
    public int QueryLength { get; init; }

    public int Heads { get; init; }

    public int KvHeads { get; init; }

    public int HeadDim { get; init; }

    /// <summary>Synthetic values are the first so many elements of the keys (MLA); null: they are tensors of their own.</summary>
    public int? ValueFromKey { get; init; }

    public bool Ceiling { get; init; }

    public bool Combine { get; init; }

    public string? Out { get; init; }

    public bool Json { get; init; }

    /// <summary>Sizes of the synthetic call over <paramref name="context"/> keys.</summary>
    public AttentionShape ShapeOf(int context) =>
        new(Batch, QueryLength == 0 ? context : QueryLength, context, Heads, KvHeads, HeadDim, ValueFromKey ?? HeadDim);
}
