namespace TreeAttention.Distributed;

/// <summary>New tokens for a cache: their keys and values in a device's memory, and where each goes.</summary>
/// <remarks>
/// A row of KV head h lies h × <see cref="PageSpan.Keys"/> rows after that of head 0: pages of a cache have that capacity.
/// </remarks>
/// <param name="Keys">[tokens, kv_heads, head_dim] fp32, not yet rotated.</param>
/// <param name="Values">[tokens, kv_heads, value_dim] fp32; empty when values are a part of the keys.</param>
/// <param name="Places">[tokens or more] in host memory.</param>
/// <param name="Count">Tokens.</param>
/// <param name="Rotary">[tokens] angles by which keys are rotated; null for none.</param>
public readonly record struct TokenBlock(Region Keys, Region Values, TokenPlace[] Places, int Count, RotaryAngles? Rotary);
