using System;

namespace TreeAttention.Distributed;

/// <summary>Where the keys and values of a long prompt come from: read token by token, on the rank that stores them alone.</summary>
public interface ITokenSource
{
    /// <summary>Keys are rotated by their positions already, and are stored as they are.</summary>
    bool IsRotated => false;

    /// <summary>Reads a token.</summary>
    /// <param name="row">Row of the cache.</param>
    /// <param name="position">Position in the row.</param>
    /// <param name="key">[kv_heads, head_dim] to be filled.</param>
    /// <param name="value">[kv_heads, value_dim] to be filled; empty when values lie in the keys.</param>
    /// <exception cref="FaultException">The token cannot be read or must not be stored.</exception>
    void Read(int row, int position, Span<float> key, Span<float> value);
}
