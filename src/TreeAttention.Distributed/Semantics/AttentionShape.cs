using TreeAttention.Distributed.Faults;

namespace TreeAttention;

/// <summary>The sizes of one attention call. Tensors are BSHD, as in flash-attn.</summary>
/// <remarks>
/// query [batch, query_len, query_heads, head_dim], key [batch, key_len, kv_heads, head_dim],
/// value [batch, key_len, kv_heads, value_dim], output [batch, query_len, query_heads, value_dim],
/// lse [batch, query_heads, query_len]. Query head h reads KV head h / group.
/// </remarks>
/// <param name="Batch">Independent sequences.</param>
/// <param name="QueryLength">Queries of each sequence.</param>
/// <param name="KeyLength">Keys of each sequence over all ranks: the context.</param>
/// <param name="QueryHeads">Query heads; a multiple of <paramref name="KvHeads"/>.</param>
/// <param name="KvHeads">Key/value heads.</param>
/// <param name="HeadDim">Elements of a query and of a key.</param>
/// <param name="ValueDim">Elements of a value and of an output.</param>
public sealed record AttentionShape(
    int Batch, int QueryLength, int KeyLength, int QueryHeads, int KvHeads, int HeadDim, int ValueDim)
{
    /// <summary>Largest head and value dimension (MLA's decode form has 576).</summary>
    public const int MaxHeadDim = 576;

    /// <summary>Query heads that share one KV head.</summary>
    public int GroupSize => KvHeads == 0 ? 0 : QueryHeads / KvHeads;

    /// <summary>Throws when the sizes do not describe an attention call.</summary>
    /// <exception cref="ShapeMismatchException">A size is out of range or the heads do not divide.</exception>
    internal void Validate()
    {
        if (Batch < 0 || QueryLength < 0 || KeyLength < 0 || QueryHeads < 1 || KvHeads < 1)
        {
            throw new ShapeMismatchException(
                $"Batch {Batch}, query length {QueryLength}, key length {KeyLength}, {QueryHeads} query heads, {KvHeads} KV heads: "
                + "lengths must not be negative and there must be at least one head.");
        }

        if (QueryHeads % KvHeads != 0)
        {
            throw new ShapeMismatchException(
                $"{QueryHeads} query heads are not a multiple of {KvHeads} KV heads: each KV head serves the same number of "
                + $"query heads (GQA). Check the third axis of the query and key tensors, and {Setting.AxisOrder}.");
        }

        if (HeadDim is < 1 or > MaxHeadDim || ValueDim is < 1 or > MaxHeadDim)
        {
            throw new ShapeMismatchException(
                $"Head dimension {HeadDim} and value dimension {ValueDim} must lie between 1 and {MaxHeadDim}.");
        }

        if ((long)Batch * QueryHeads * QueryLength > int.MaxValue / (ValueDim + 2))
        {
            throw new ShapeMismatchException(
                $"An output of {Batch} × {QueryLength} × {QueryHeads} × {ValueDim} elements is more than one call handles (2^31): "
                + "split the queries or the batch over several calls.");
        }
    }
}
