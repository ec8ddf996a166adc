namespace TreeAttention.Distributed;

/// <summary>What <see cref="NaiveAttention"/> rounds to the storage type.</summary>
public enum NaiveRounding
{
    /// <summary>Inputs, scores, weights and output.</summary>
    Everything,

    /// <summary>Query, keys and values; all else is single precision.</summary>
    Inputs,

    /// <summary>Keys and values; all else is single precision.</summary>
    Storage,
}
