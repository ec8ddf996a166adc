namespace TreeAttention.Devices;

/// <summary>Whether a device does one of the operations that all kernels are built of as it is defined.</summary>
/// <param name="Primitive">The operation and its type: <c>multiply_add&lt;bfloat16&gt;</c>.</param>
/// <param name="Difference">What differs from the golden data; null where nothing does.</param>
public sealed record PrimitiveCheck(string Primitive, string? Difference);
