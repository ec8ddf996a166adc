using System;

namespace TreeAttention.Communication;

/// <summary>How long ranks may wait for each other before the group is ended.</summary>
public sealed record StallLimits
{
    /// <summary>Operations whose name begins so are computing: nobody's peer is waited for in them.</summary>
    public const string ComputeOperation = "compute";

    /// <summary>A rank waits so long in a communication operation for one that is silent or stands still; also the longest silence.</summary>
    public TimeSpan Operation { get; init; } = TimeSpan.FromSeconds(10);

    /// <summary>The same for the first operations: compiling, opening connections, loading.</summary>
    public TimeSpan WarmUp { get; init; } = TimeSpan.FromSeconds(120);

    /// <summary>How many operations count as the first ones.</summary>
    public int WarmUpOperations { get; init; } = 8;

    /// <summary>The same for a rank that sends heartbeats and says that it computes, and for a transfer in which all ranks take part.</summary>
    public TimeSpan Compute { get; init; } = TimeSpan.FromMinutes(10);

    /// <summary>Time between two heartbeats.</summary>
    public TimeSpan Beat { get; init; } = TimeSpan.FromMilliseconds(500);

    /// <summary>Off: nobody watches, and a group with a dead rank may hang for ever.</summary>
    public bool IsWatching { get; init; } = true;

    internal TimeSpan For(long operation) => operation <= WarmUpOperations ? WarmUp : Operation;
}
