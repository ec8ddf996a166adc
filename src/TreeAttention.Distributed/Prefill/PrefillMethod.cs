using System;

namespace TreeAttention.Distributed;

/// <summary>How the ranks attend to a prompt while it enters a cache.</summary>
public enum PrefillMethod
{
    /// <summary>Keys and values of the prompt travel from rank to rank; every rank has its share of the prompt.</summary>
    Ring,

    /// <summary>Every rank gathers the keys and values of the whole prompt; every rank has its share of the queries.</summary>
    Gather,

    /// <summary>Every rank has all queries, and decodes a chunk of them after the other: for prompts that continue what the cache holds, and for the same bits on any number of ranks.</summary>
    Chunked,
}

/// <summary>The names of <see cref="PrefillMethod"/>.</summary>
public static class PrefillMethods
{
    /// <summary>The name users write.</summary>
    public static string Name(this PrefillMethod method) => method switch
    {
        PrefillMethod.Ring => "ring",
        PrefillMethod.Gather => "gather",
        PrefillMethod.Chunked => "chunked",
        _ => throw new ArgumentOutOfRangeException(nameof(method), method, "No such method."),
    };
}
