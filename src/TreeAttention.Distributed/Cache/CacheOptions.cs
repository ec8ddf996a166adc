using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention;

/// <summary>The sizes of a KV cache: how many rows, how long they may grow, what is stored.</summary>
public sealed record CacheOptions
{
    /// <summary>Layers of the model; all share one page table.</summary>
    public int Layers { get; init; } = 1;

    /// <summary>Independent sequences.</summary>
    public int Rows { get; init; } = 1;

    /// <summary>KV heads.</summary>
    public required int KvHeads { get; init; }

    /// <summary>Elements of a key.</summary>
    public required int HeadDim { get; init; }

    /// <summary>Elements of a value.</summary>
    public required int ValueDim { get; init; }

    /// <summary>Values are the first value_dim elements of the keys (MLA) and are not stored again.</summary>
    public bool ValuesInKeys { get; init; }

    /// <summary>Storage type of keys and values.</summary>
    public ElementType Type { get; init; } = ElementType.Float32;

    /// <summary>Scales of storage that has some; 1 when null. Numbers that round to the type's largest × the scale of their KV head can be stored (f8e4m3: up to 464, i8: below 127.5).</summary>
    public KeyValueScales? Scales { get; init; }

    /// <summary>Most tokens of a row.</summary>
    public required int MaxLength { get; init; }

    /// <summary>Bytes of keys and values that this rank may store; null is room for every row at its longest.</summary>
    public long? MemoryBytes { get; init; }

    /// <summary>
    /// Share, above 0 and at most 1, of the memory that is free when the cache is made and that it may take: of the GPU, or of the host within
    /// the limits of its control group. Ranks that share a memory share it evenly. What steps allocate needs room beside it: 0.9 leaves some.
    /// Null takes what is needed. With <see cref="MemoryBytes"/> the lesser counts; neither takes more than every row at its longest.
    /// </summary>
    public double? MemoryFraction { get; init; }

    /// <summary>Keys are rotated when they are appended, queries when they attend; null for no rotary embedding.</summary>
    public RotaryOptions? Rotary { get; init; }

    /// <summary>What happens to NaN and infinities in host memory; those in device memory always propagate.</summary>
    public NonFinitePolicy NonFinite { get; init; }

    /// <summary>Every rank stores every key, for <see cref="AttentionAlgorithm.Single"/>.</summary>
    public bool Replicated { get; init; }

    /// <summary>Pages that a row has at its longest.</summary>
    internal int MostPages => PageSpan.PagesFor(MaxLength);

    /// <summary>Elements of a key page over all KV heads.</summary>
    internal long KeyPageElements => (long)KvHeads * PageSpan.Keys * HeadDim;

    /// <summary>Elements of a value page over all KV heads.</summary>
    internal long ValuePageElements => ValuesInKeys ? 0 : (long)KvHeads * PageSpan.Keys * ValueDim;

    /// <summary>Numbers of a token's key.</summary>
    internal int KeyFloats => KvHeads * HeadDim;

    /// <summary>Numbers of a token's value.</summary>
    internal int ValueFloats => ValuesInKeys ? 0 : KvHeads * ValueDim;

    /// <summary>Bytes of a page in all layers.</summary>
    internal long PageBytes => Type.BytesFor(KeyPageElements + ValuePageElements) * Layers;

    /// <summary>Throws when the sizes describe no cache.</summary>
    /// <exception cref="ShapeMismatchException">A size is out of range.</exception>
    internal void Validate()
    {
        if (Layers < 1 || Rows < 1 || MaxLength < 1)
        {
            throw new ShapeMismatchException($"A cache of {Layers} layers × {Rows} rows × {MaxLength} tokens: each must be at least 1.");
        }

        if (MemoryBytes < 0 || MemoryFraction is <= 0 or > 1 or double.NaN)
        {
            throw new ShapeMismatchException($"A cache cannot have {MemoryBytes} bytes or a share of {MemoryFraction} of what is free: give 0 bytes and more, and a share in (0, 1].");
        }

        new AttentionShape(Rows, 1, MaxLength, KvHeads, KvHeads, HeadDim, ValueDim).Validate();
        if (ValuesInKeys && ValueDim > HeadDim)
        {
            throw new ShapeMismatchException($"Values of {ValueDim} elements do not lie inside keys of {HeadDim}.");
        }

        KeyValueScales.RequireFit(Scales, Type, KvHeads);
        Rotary?.Validate(HeadDim);
    }
}

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

/// <summary>Which options of a decode step fit a growing cache.</summary>
internal static class DecodeRules
{
    /// <summary>Throws when the options contradict the cache or themselves.</summary>
    /// <exception cref="ShapeMismatchException">Rows are none of the cache's, or twice the same; lengths of keys are given.</exception>
    /// <exception cref="FaultException">The algorithm does not go with a growing cache (2).</exception>
    public static void Check(ShardedKvCache cache, DecodeOptions options, int[] rows)
    {
        RequireDifferent(cache, rows);
        if (AttentionOption.HasMisplaced(options.Attention, OptionUses.Decode))
        {
            throw new ShapeMismatchException(
                "Lengths and left padding of rows are those of the cache: a decode step takes no key lengths, key starts or packed sequences.");
        }

        AttentionAlgorithm algorithm = options.Plan.Algorithm;
        if ((algorithm == AttentionAlgorithm.Single) != cache.Options.Replicated)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{Setting.Algorithm} {algorithm.Name()} needs a cache that is {(algorithm == AttentionAlgorithm.Single ? "replicated on" : "sharded over")} the ranks.");
        }

        if (options.Plan.Placement != QueryPlacement.Replicated)
        {
            throw new FaultException(FaultCode.CommandLine, $"Decode queries are on every rank: {Setting.PlacementSharded} belongs to prefill.");
        }
    }

    /// <summary>Throws unless the rows of a step are different rows of the cache.</summary>
    /// <exception cref="ShapeMismatchException">They are not, or there is none.</exception>
    public static void RequireDifferent(ShardedKvCache cache, int[] rows)
    {
        cache.Rows.RequireDifferent(rows);
        if (rows.Length == 0)
        {
            throw new ShapeMismatchException("A step needs at least one row of the cache.");
        }
    }
}
