namespace TreeAttention;

/// <summary>What one attention without a cache attends with: sizes, meaning of attention, which keys each rank gives, how the ranks meet.</summary>
/// <remarks>The number of keys is not said: it is what all ranks give together.</remarks>
public sealed record AttendOptions
{
    /// <summary>Independent sequences.</summary>
    public int Batch { get; init; } = 1;

    /// <summary>Queries of each sequence.</summary>
    public int QueryLength { get; init; } = 1;

    /// <summary>Query heads; a multiple of <see cref="KvHeads"/>.</summary>
    public required int QueryHeads { get; init; }

    /// <summary>KV heads.</summary>
    public required int KvHeads { get; init; }

    /// <summary>Elements of a query and of a key.</summary>
    public required int HeadDim { get; init; }

    /// <summary>Elements of a value and of an output.</summary>
    public required int ValueDim { get; init; }

    /// <summary>Values are the first value_dim elements of the keys (MLA) and are not given again.</summary>
    public bool ValuesInKeys { get; init; }

    /// <summary>Scale, masks and biases. All positions are those of the whole sequence, whatever the shards.</summary>
    public AttentionOptions Attention { get; init; } = new();

    /// <summary>Algorithm and reduction: tree or a ring; single in a group of one rank. The lanes reduction goes with the lanes layout.</summary>
    public AttentionPlan Plan { get; init; } = new(AttentionAlgorithm.Tree);

    /// <summary>
    /// Which keys each rank gives, in the order of <see cref="ShardLayout.PositionsOf"/>. Null: rank 0 gives the first ones, rank 1
    /// those that follow, and so on; each as many as it likes, also none.
    /// </summary>
    public ShardLayout? Layout { get; init; }

    /// <summary>Storage type of keys and values on the device, to which they are rounded.</summary>
    public ElementType Type { get; init; } = ElementType.Float32;

    /// <summary>Scales of eight-bit storage, one of each for a KV head; 1 when null.</summary>
    public KeyValueScales? Scales { get; init; }

    /// <summary>What happens to NaN and infinities.</summary>
    public NonFinitePolicy NonFinite { get; init; }
}
