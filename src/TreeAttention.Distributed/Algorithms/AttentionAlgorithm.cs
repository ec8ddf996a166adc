using System;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>How the ranks come from their shards to attention over all keys.</summary>
public enum AttentionAlgorithm
{
    /// <summary>One rank holds all keys.</summary>
    Single,

    /// <summary>Each rank attends to its own keys; a reduction folds the states.</summary>
    Tree,

    /// <summary>Keys and values travel around the ring; the next shard travels while the current one is attended to.</summary>
    Ring,

    /// <summary>Like <see cref="Ring"/>, but a shard travels only after it was attended to.</summary>
    RingNoOverlap,

    /// <summary>Keys stay; partials (queries replicated) or queries with their partials (queries sharded) travel.</summary>
    RingQuery,

    /// <summary>Every rank gathers all keys and values, then attends to them alone: the plain way to prefill.</summary>
    Gather,
}

/// <summary>The names of <see cref="AttentionAlgorithm"/>.</summary>
public static class AttentionAlgorithms
{
    /// <summary>The name users write.</summary>
    public static string Name(this AttentionAlgorithm algorithm) => algorithm switch
    {
        AttentionAlgorithm.Single => "single",
        AttentionAlgorithm.Tree => "tree",
        AttentionAlgorithm.Ring => "ring",
        AttentionAlgorithm.RingNoOverlap => "ring-no-overlap",
        AttentionAlgorithm.RingQuery => "ring-query",
        AttentionAlgorithm.Gather => "gather",
        _ => throw new ArgumentOutOfRangeException(nameof(algorithm), algorithm, "No such algorithm."),
    };

    /// <summary>Reads a name.</summary>
    /// <exception cref="FormatException">There is no such algorithm; the message lists those there are.</exception>
    public static AttentionAlgorithm Parse(string text)
    {
        AttentionAlgorithm[] all = Enum.GetValues<AttentionAlgorithm>();
        foreach (AttentionAlgorithm algorithm in all)
        {
            if (algorithm.Name() == text)
            {
                return algorithm;
            }
        }

        throw new FormatException($"'{text}' is no algorithm; there are {string.Join(", ", all.Select(one => one.Name()))}.");
    }
}
