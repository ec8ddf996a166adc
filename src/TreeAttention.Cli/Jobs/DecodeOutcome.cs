using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>What the steps gave and what they cost.</summary>
/// <param name="Cost">The steps' cost; the same on every rank.</param>
/// <param name="Prefill">What the context cost; null where it was only stored.</param>
/// <param name="AllocatedBytes">Managed bytes that the steps allocated on the rank that allocated most.</param>
/// <param name="Result">Outputs of all steps, behind those of a prefilled context, on rank 0; null elsewhere, and where nobody asked for them.</param>
/// <param name="Verification">The sampled steps and the context together; null on other ranks, and where nobody asked.</param>
internal sealed record DecodeOutcome(
    StepMeasurement Cost, PrefillOutcome? Prefill, long AllocatedBytes, AttentionResult? Result, VerificationReport? Verification);
