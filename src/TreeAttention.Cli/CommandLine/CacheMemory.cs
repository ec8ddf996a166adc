using System;
using System.Globalization;

namespace TreeAttention.Cli;

/// <summary>What <c>--cache-memory</c> says: bytes of each rank, or a share of what is free.</summary>
/// <param name="Bytes">Bytes; null for a share.</param>
/// <param name="Fraction">The share; null for bytes.</param>
internal sealed record CacheMemory(long? Bytes, double? Fraction)
{
    // The rest is for what steps allocate.
    private const double Available = 0.9;

    /// <summary>Reads the option's value.</summary>
    /// <exception cref="FormatException">It is neither.</exception>
    public static CacheMemory Parse(string text)
    {
        if (text == "available")
        {
            return new CacheMemory(null, Available);
        }

        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
        return long.TryParse(shift == 0 ? text : text[..^1], NumberStyles.None, CultureInfo.InvariantCulture, out long value)
            && value <= long.MaxValue >> shift
            ? new CacheMemory(value << shift, null)
            : throw new FormatException($"give 'available', or bytes with K, M or G for powers of 1024, not '{text}'.");
    }

    /// <summary>As settings of ranks are compared.</summary>
    public override string ToString() => Bytes is { } bytes ? bytes.ToString(CultureInfo.InvariantCulture) : "available";
}
