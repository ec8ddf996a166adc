namespace TreeAttention.Distributed;

/// <summary>One row of a result: the output and log-sum-exp of one query and one head.</summary>
/// <param name="Batch">Batch row.</param>
/// <param name="Head">Query head.</param>
/// <param name="Query">The query's index in its sequence.</param>
public readonly record struct AttentionRow(int Batch, int Head, int Query)
{
    /// <inheritdoc/>
    public override string ToString() => $"batch {Batch}, query {Query}, head {Head}";
}
