namespace TreeAttention.Distributed;

/// <summary>How far a result is from the reference.</summary>
/// <param name="ErrorMax">Largest error of the worst row, the one whose error is the largest part of its bound; +∞ where NaN or ∞ do not match.</param>
/// <param name="ErrorBound">What the error of that row may be.</param>
/// <param name="Wrong">Rows outside their bounds.</param>
/// <param name="Rows">Rows compared.</param>
/// <param name="WorstRow">Which row and number the error belongs to, and the reference beside it; null when no rows were compared.</param>
public sealed record VerificationReport(double ErrorMax, double ErrorBound, long Wrong, int Rows, string? WorstRow);
