namespace TreeAttention;

/// <summary>What happens to NaN and infinities in queries, keys and values.</summary>
public enum NonFinitePolicy
{
    /// <summary>The first one is a <see cref="FaultCode.BadInput"/> that names its tensor and position.</summary>
    Error,

    /// <summary>They take part; exactly the rows that see them become NaN.</summary>
    Propagate,
}
