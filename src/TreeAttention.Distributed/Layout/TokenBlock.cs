using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Layout;

/// <summary>New tokens for a cache: their keys and values in a device's memory, and where each goes.</summary>
/// <remarks>
/// A row of KV head h lies h × <see cref="PageSpan.Keys"/> rows after that of head 0: pages of a cache have that capacity.
/// </remarks>
/// <param name="Keys">[tokens, kv_heads, head_dim] fp32, not yet rotated.</param>
/// <param name="Values">[tokens, kv_heads, value_dim] fp32; empty when values are a part of the keys.</param>
/// <param name="Places">[tokens or more] in host memory.</param>
/// <param name="Count">Tokens.</param>
/// <param name="Rotary">[tokens] angles by which keys are rotated; null for none.</param>
internal readonly record struct TokenBlock(Region Keys, Region Values, TokenPlace[] Places, int Count, RotaryAngles? Rotary);

/// <summary>Where a token's key and value go in a cache's contents.</summary>
/// <param name="KeyOffset">Element of the key's row for KV head 0; -1 when another rank owns the token.</param>
/// <param name="ValueOffset">Element of the value's row for KV head 0; equal to <paramref name="KeyOffset"/> when values are a part of the keys.</param>
/// <param name="Slot">Row of the token's page in the limits.</param>
internal readonly record struct TokenPlace(long KeyOffset, long ValueOffset, int Slot)
{
    /// <summary>The place of a token that another rank owns.</summary>
    public static TokenPlace Elsewhere => new(-1, -1, -1);

    /// <summary>This rank stores the token.</summary>
    public bool IsHere => KeyOffset >= 0;
}
