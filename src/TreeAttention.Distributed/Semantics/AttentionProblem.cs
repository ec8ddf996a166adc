using System;

namespace TreeAttention.Distributed.Semantics;

/// <summary>One attention call in full: validated shape and options, and the mask rules that follow from them.</summary>
public sealed class AttentionProblem
{
    /// <summary>Checks that the options fit the shape.</summary>
    /// <exception cref="ShapeMismatchException">An option's array is not of the length that the shape asks for.</exception>
    public AttentionProblem(AttentionShape shape, AttentionOptions options)
    {
        shape.Validate();
        Shape = shape;
        Options = options;
        PackingRules.Check(shape, options);
        int rows = options.PackedQueries is { } packed ? packed.Length - 1 : shape.Batch;
        RequireLength("--alibi", options.AlibiSlopes, "[query_heads] or [batch, query_heads]", shape.QueryHeads, (long)rows * shape.QueryHeads);
        RequireLength("--sinks", options.Sinks, "[query_heads]", shape.QueryHeads);
        RequireLengths("--key-lengths", options.KeyLengths, shape.Batch, shape.KeyLength);
        RequireLengths("--query-lengths", options.QueryLengths, shape.Batch, shape.QueryLength);
        RequireLengths("--leftpad", options.KeyStarts, shape.Batch, shape.KeyLength);
        RequireDepths(shape, options);
        if ((options.DfsStart is null) != (options.DfsEnd is null))
        {
            throw new ShapeMismatchException("A depth-first mask needs both --dfs-start [batch, query_len] and --dfs-end [batch, key_len].");
        }

        long queries = (long)shape.Batch * shape.QueryLength;
        RequireLength("--dfs-start", options.DfsStart, "[batch, query_len]", queries);
        RequireLength("--dfs-end", options.DfsEnd, "[batch, key_len]", (long)shape.Batch * shape.KeyLength);
        RequireLength("--tail-mask", options.TailMask, "[batch, query_len, tail]", queries * options.TailMaskLength);
        RequireLength(
            "--tail-bias", options.TailBias, "[1 or batch, query_len, tail]",
            (long)shape.QueryLength * options.TailBiasLength, queries * options.TailBiasLength);
        Mask = new AttentionMask(shape, options);
    }

    /// <summary>The sizes.</summary>
    public AttentionShape Shape { get; }

    /// <summary>The options as given.</summary>
    public AttentionOptions Options { get; }

    /// <summary>Which key each query sees, and what is added to its score.</summary>
    public AttentionMask Mask { get; }

    /// <summary>Factor on query·key, not yet rounded to fp32: at scores of 1e3 that rounding would already show.</summary>
    public double Scale => Options.Scale ?? (1.0 / Math.Sqrt(Shape.HeadDim));

    private static void RequireLength(string name, Array? values, string rule, params ReadOnlySpan<long> allowed)
    {
        if (values is not null && !allowed.Contains(values.LongLength))
        {
            throw new ShapeMismatchException(
                $"{name} has {values.LongLength} elements but {rule} asks for {string.Join(" or ", allowed.ToArray())}.");
        }
    }

    private static void RequireDepths(AttentionShape shape, AttentionOptions options)
    {
        RequireLength("The depths", options.QueryDepths, "[1 or batch, query_len]", shape.QueryLength, (long)shape.Batch * shape.QueryLength);
        int bad = Array.FindIndex(options.QueryDepths ?? [], depth => depth < 0 || depth >= shape.QueryLength);
        if (bad >= 0)
        {
            throw new ShapeMismatchException(
                $"Query {bad % shape.QueryLength} has depth {options.QueryDepths![bad]}, outside 0 to {shape.QueryLength - 1}: a tree of "
                + $"{shape.QueryLength} nodes is no deeper.");
        }

        if (options.QueryDepths is not null && options.DfsStart is not null)
        {
            throw new ShapeMismatchException("--dfs-start orders queries by their place, a token tree by depth: give one of them.");
        }
    }

    private static void RequireLengths(string name, int[]? lengths, int batch, int most)
    {
        RequireLength(name, lengths, "[batch]", batch);
        for (int row = 0; row < lengths?.Length; row++)
        {
            if (lengths[row] < 0 || lengths[row] > most)
            {
                throw new ShapeMismatchException($"{name}[{row}] is {lengths[row]}, outside 0 to {most}, the length of the tensor.");
            }
        }
    }
}

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
