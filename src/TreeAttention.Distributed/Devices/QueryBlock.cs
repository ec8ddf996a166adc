namespace TreeAttention.Distributed;

/// <summary>The queries a rank works on, in a device's memory: [batch, query_heads, count, head_dim] fp32, unscaled.</summary>
/// <remarks>
/// Head-major, so that the query rows of one KV head are neighbours, in the order of the rows of a partial.
/// </remarks>
/// <param name="Values">batch × query_heads × count × head_dim floats.</param>
/// <param name="Indices">[count] ascending or not: the index of each query in its whole sequence.</param>
public sealed record QueryBlock(Region Values, int[] Indices)
{
    /// <summary>Queries of each batch row and head.</summary>
    public int Count => Indices.Length;

    /// <summary>Rows of the partial over these queries.</summary>
    public int RowsFor(AttentionShape shape) => checked(shape.Batch * shape.QueryHeads * Count);
}
