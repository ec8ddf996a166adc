namespace TreeAttention.Runtime;

/// <summary>What one look at the machine found.</summary>
/// <param name="Subject">What was looked at: <c>MPI library</c>.</param>
/// <param name="IsThere">It is there, or large enough.</param>
/// <param name="Detail">What was found, with versions, sizes and paths.</param>
/// <param name="WayOut">How to get what is missing; null when nothing is, or nothing needs it yet.</param>
public sealed record Finding(string Subject, bool IsThere, string Detail, string? WayOut = null);
