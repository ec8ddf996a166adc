using System;

namespace TreeAttention.Distributed;

/// <summary>Which queries a rank has, and of which queries it gets the result.</summary>
public enum QueryPlacement
{
    /// <summary>Every rank has all queries and gets the whole result.</summary>
    Replicated,

    /// <summary>Each rank has its share of the queries and gets its share of the result (ring algorithms, gather).</summary>
    Sharded,
}

/// <summary>The names of <see cref="QueryPlacement"/>.</summary>
public static class QueryPlacements
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
