using System;
using System.Runtime.InteropServices;

namespace TreeAttention.Testing.Partials;

/// <summary>Equality of floats to the bit: -0 is not 0, and a NaN is itself.</summary>
internal static class Bits
{
    public static bool Equal(ReadOnlySpan<float> left, ReadOnlySpan<float> right) =>
        MemoryMarshal.AsBytes(left).SequenceEqual(MemoryMarshal.AsBytes(right));
}
