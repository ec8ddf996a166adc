using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>What it cost to take the context into the cache and to attend to it, over all layers.</summary>
/// <param name="Microseconds">From barriers to the slowest rank; reading the inputs is not counted.</param>
/// <param name="Sent">What the busiest rank handed to the transport.</param>
/// <param name="Verification">Sampled rows; null on other ranks than 0, and where nobody asked.</param>
internal sealed record PrefillOutcome(double Microseconds, TrafficCount Sent, VerificationReport? Verification);
