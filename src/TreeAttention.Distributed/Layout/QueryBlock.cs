using System;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Distributed.Layout;

/// <summary>The queries a rank works on, in a device's memory: [batch, query_heads, count, head_dim] fp32, unscaled.</summary>
/// <remarks>
/// Head-major, so that the query rows of one KV head are neighbours, in the order of the rows of a partial.
/// </remarks>
/// <param name="Values">batch × query_heads × count × head_dim floats.</param>
/// <param name="Indices">[count] ascending or not: the index of each query in its whole sequence.</param>
internal sealed record QueryBlock(Region Values, int[] Indices)
{
    /// <summary>Queries of each batch row and head.</summary>
    public int Count => Indices.Length;

    /// <summary>Rows of the partial over these queries.</summary>
    public int RowsFor(AttentionShape shape) => checked(shape.Batch * shape.QueryHeads * Count);
}

/// <summary>Which queries a rank has, and of which queries it gets the result.</summary>
internal enum QueryPlacement
{
    /// <summary>Every rank has all queries and gets the whole result.</summary>
    Replicated,

    /// <summary>Each rank has its share of the queries and gets its share of the result (ring algorithms, gather).</summary>
    Sharded,
}

/// <summary>The names of <see cref="QueryPlacement"/>.</summary>
internal static class QueryPlacements
{
    /// <summary>The name users write.</summary>
    public static string Name(this QueryPlacement placement) => placement switch
    {
        QueryPlacement.Replicated => "replicated",
        QueryPlacement.Sharded => "sharded",
        _ => throw new ArgumentOutOfRangeException(nameof(placement), placement, "No such placement."),
    };

    /// <summary>Reads a name.</summary>
    /// <exception cref="FormatException">There is no such placement.</exception>
    public static QueryPlacement Parse(string text) => text switch
    {
        "replicated" => QueryPlacement.Replicated,
        "sharded" => QueryPlacement.Sharded,
        _ => throw new FormatException($"'{text}' is no query placement; there are replicated, sharded."),
    };
}

/// <summary>Which queries a rank has: all of them, or the shard layout applied to the query axis.</summary>
internal static class QueryLayout
{
    /// <summary>Indices of the rank's queries in their whole sequence, in the order of its query block.</summary>
    /// <exception cref="FaultException">Explicit shard lengths do not fit the query axis (2).</exception>
    public static int[] IndicesOf(QueryPlacement placement, ShardLayout layout, AttentionShape shape, int rank, int ranks)
    {
        if (placement == QueryPlacement.Replicated)
        {
            return [.. Enumerable.Range(0, shape.QueryLength)];
        }

        if (layout.Name.StartsWith("lengths:", StringComparison.Ordinal) && shape.QueryLength != shape.KeyLength)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{Setting.ShardLengths} names {shape.KeyLength} keys, but there are {shape.QueryLength} queries to shard with "
                + $"{Setting.PlacementSharded}: with explicit lengths both axes must be equally long. Use {Setting.ShardContiguous}, or "
                + $"{Setting.PlacementReplicated}.");
        }

        return layout.PositionsOf(rank, ranks, shape.QueryLength);
    }
}
