using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>What <c>--prefill</c> says: a method, or none.</summary>
internal readonly record struct PrefillChoice(PrefillMethod? Method);
