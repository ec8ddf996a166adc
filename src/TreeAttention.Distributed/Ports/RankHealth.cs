using System;

namespace TreeAttention;

/// <summary>What is known of a rank at one moment.</summary>
/// <param name="Rank">The rank.</param>
/// <param name="SinceProgress">How long ago it last went into a call or an operation, or out of one; null where this rank does not hear of it.</param>
/// <param name="Call">The call or the operation that it is in; null between calls, or where this rank does not hear of it.</param>
public readonly record struct RankHealth(int Rank, TimeSpan? SinceProgress, string? Call);
