namespace TreeAttention.Cli;

/// <summary>Order of a tensor's axes in a file.</summary>
internal enum AxisOrder
{
    /// <summary>[batch, length, heads, dim]</summary>
    Bshd,

    /// <summary>[batch, heads, length, dim]</summary>
    Bhsd,
}
