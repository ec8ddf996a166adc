namespace TreeAttention.Distributed;

/// <summary>What packed sequences must be: two ascending lists of bounds that cover both axes of one batch row.</summary>
internal static class PackingRules
{
    /// <summary>Throws when the bounds are not those of packed sequences, or stand beside options that say the same otherwise.</summary>
    /// <exception cref="ShapeMismatchException">Which list, which element, and the rule.</exception>
    public static void Check(AttentionShape shape, AttentionOptions options)
    {
        if (options.PackedQueries is null && options.PackedKeys is null)
        {
            return;
        }

        if (options.PackedQueries is not { } queries || options.PackedKeys is not { } keys)
        {
            throw new ShapeMismatchException("Packed sequences need both --cu-seqlens-q and --cu-seqlens-k, [sequences + 1] each.");
        }

        if (shape.Batch != 1)
        {
            throw new ShapeMismatchException(
                $"Packed sequences lie one after the other in one batch row, but the tensors have {shape.Batch}. Give [total, heads, dim] or [1, total, heads, dim].");
        }

        if (options.KeyLengths is not null || options.QueryLengths is not null || options.KeyStarts is not null || options.QueryDepths is not null)
        {
            throw new ShapeMismatchException(
                "Packed sequences have their lengths from --cu-seqlens-q and --cu-seqlens-k: leave --key-lengths, --query-lengths, --leftpad "
                + "and token trees out (depth-first masks may stay).");
        }

        CheckBounds("--cu-seqlens-q", queries, shape.QueryLength, "queries");
        CheckBounds("--cu-seqlens-k", keys, shape.KeyLength, "keys");
        if (queries.Length != keys.Length)
        {
            throw new ShapeMismatchException(
                $"--cu-seqlens-q names {queries.Length - 1} sequences and --cu-seqlens-k {keys.Length - 1}: both must name the same.");
        }
    }

    private static void CheckBounds(string name, int[] bounds, int length, string what)
    {
        if (bounds.Length == 0 || bounds[0] != 0)
        {
            throw new ShapeMismatchException($"{name} must begin with 0, but it {(bounds.Length == 0 ? "is empty" : $"begins with {bounds[0]}")}.");
        }

        for (int i = 1; i < bounds.Length; i++)
        {
            if (bounds[i] < bounds[i - 1])
            {
                throw new ShapeMismatchException($"{name}[{i}] is {bounds[i]}, less than {bounds[i - 1]} before it: bounds must not descend.");
            }
        }

        if (bounds[^1] != length)
        {
            throw new ShapeMismatchException($"{name} ends with {bounds[^1]}, but the tensors have {length} {what}: the last bound must be their number.");
        }
    }
}
