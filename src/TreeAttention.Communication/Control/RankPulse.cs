using System;

namespace TreeAttention.Communication;

/// <summary>What is known of one rank at one moment.</summary>
/// <param name="Rank">The rank.</param>
/// <param name="Place">Its host and process, for messages.</param>
/// <param name="Count">Operations that it has entered.</param>
/// <param name="Operation">The operation that it is in; null between operations.</param>
/// <param name="Standing">How long it has been in this very state, by its own clock, while it was running.</param>
/// <param name="Silence">How long ago it was last heard.</param>
/// <param name="HasLeft">It said goodbye.</param>
internal readonly record struct RankPulse(
    int Rank, string Place, long Count, string? Operation, TimeSpan Standing, TimeSpan Silence, bool HasLeft)
{
    internal bool IsComputing => Operation != null && Operation.StartsWith(StallLimits.ComputeOperation, StringComparison.Ordinal);

    internal bool IsCommunicating => Operation != null && !IsComputing;

    internal string Name => $"rank {Rank} ({Place})";

    internal string Where => Operation != null ? $"in operation {Count:N0} ({Operation})" : $"outside any operation, after operation {Count:N0},";
}
