namespace TreeAttention.Distributed;

/// <summary>Where a token's key and value go in a cache's contents.</summary>
/// <param name="KeyOffset">Element of the key's row for KV head 0; -1 when another rank owns the token.</param>
/// <param name="ValueOffset">Element of the value's row for KV head 0; equal to <paramref name="KeyOffset"/> when values are a part of the keys.</param>
/// <param name="Slot">Row of the token's page in the limits.</param>
public readonly record struct TokenPlace(long KeyOffset, long ValueOffset, int Slot)
{
    /// <summary>The place of a token that another rank owns.</summary>
    public static TokenPlace Elsewhere => new(-1, -1, -1);

    /// <summary>This rank stores the token.</summary>
    public bool IsHere => KeyOffset >= 0;
}
