using System;
using System.Linq;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Semantics;

/// <summary>One attention call in full: validated shape and options, and the mask rules that follow from them.</summary>
internal sealed class AttentionProblem
{
    private PresentTokens? _present;

    /// <summary>Checks that the options fit the shape.</summary>
    /// <exception cref="ShapeMismatchException">An option's array is not of the length that the shape asks for.</exception>
    public AttentionProblem(AttentionShape shape, AttentionOptions options)
    {
        shape.Validate();
        Shape = shape;
        Options = options;
        PackingRules.Check(shape, options);
        if ((options.DfsStart is null) != (options.DfsEnd is null))
        {
            throw new ShapeMismatchException($"A depth-first mask needs both {Setting.DfsStart} [batch, query_len] and {Setting.DfsEnd} [batch, key_len].");
        }

        foreach (OptionArray array in AttentionOption.All.SelectMany(option => option.Arrays))
        {
            array.RequireLength(shape, options);
        }

        RequireWithin(Setting.KeyLengths, options.KeyLengths, shape.KeyLength);
        RequireWithin(Setting.QueryLengths, options.QueryLengths, shape.QueryLength);
        RequireWithin(Setting.KeyStarts, options.KeyStarts, shape.KeyLength);
        RequireDepths(shape, options);
        Mask = new AttentionMask(shape, options);
    }

    /// <summary>The sizes.</summary>
    public AttentionShape Shape { get; }

    /// <summary>The options as given.</summary>
    public AttentionOptions Options { get; }

    /// <summary>Which key each query sees, and what is added to its score.</summary>
    public AttentionMask Mask { get; }

    /// <summary>Which keys and queries there are, where lengths do not change.</summary>
    public PresentTokens Present => _present ??= new PresentTokens(Shape, Options);

    /// <summary>Factor on query·key, not yet rounded to fp32: at scores of 1e3 that rounding would already show.</summary>
    public double Scale => Options.Scale ?? (1.0 / Math.Sqrt(Shape.HeadDim));

    private static void RequireDepths(AttentionShape shape, AttentionOptions options)
    {
        int bad = Array.FindIndex(options.QueryDepths ?? [], depth => depth < 0 || depth >= shape.QueryLength);
        if (bad >= 0)
        {
            throw new ShapeMismatchException(
                $"Query {bad % shape.QueryLength} has depth {options.QueryDepths![bad]}, outside 0 to {shape.QueryLength - 1}: a tree of "
                + $"{shape.QueryLength} nodes is no deeper.");
        }

        if (options.QueryDepths is not null && options.DfsStart is not null)
        {
            throw new ShapeMismatchException($"{Setting.DfsStart} orders queries by their place, a token tree by depth: give one of them.");
        }
    }

    private static void RequireWithin(Setting name, int[]? lengths, int most)
    {
        for (int row = 0; row < lengths?.Length; row++)
        {
            if (lengths[row] < 0 || lengths[row] > most)
            {
                throw new ShapeMismatchException($"{name}[{row}] is {lengths[row]}, outside 0 to {most}, the length of the tensor.");
            }
        }
    }
}

/// <summary>What packed sequences must be: two ascending lists of bounds on the axes of one batch row; what lies behind the last is padding.</summary>
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
            throw new ShapeMismatchException($"Packed sequences need both {Setting.PackedQueries} and {Setting.PackedKeys}, [sequences + 1] each.");
        }

        if (shape.Batch != 1)
        {
            throw new ShapeMismatchException(
                $"Packed sequences lie one after the other in one batch row, but the tensors have {shape.Batch}. Give [total, heads, dim] or [1, total, heads, dim].");
        }

        if (AttentionOption.HasMisplaced(options, OptionUses.Packing))
        {
            throw new ShapeMismatchException(
                $"Packed sequences have their lengths from {Setting.PackedQueries} and {Setting.PackedKeys}: leave {Setting.KeyLengths}, "
                + $"{Setting.QueryLengths}, {Setting.KeyStarts} and token trees out (depth-first masks may stay).");
        }

        CheckBounds(Setting.PackedQueries, queries, shape.QueryLength, "queries");
        CheckBounds(Setting.PackedKeys, keys, shape.KeyLength, "keys");
        if (queries.Length != keys.Length)
        {
            throw new ShapeMismatchException(
                $"{Setting.PackedQueries} names {queries.Length - 1} sequences and {Setting.PackedKeys} {keys.Length - 1}: both must name the same.");
        }
    }

    private static void CheckBounds(Setting name, int[] bounds, int length, string what)
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

        if (bounds[^1] > length)
        {
            throw new ShapeMismatchException(
                $"{name} ends with {bounds[^1]}, but the tensors have {length} {what}: the last bound must be their number, or less where padding follows.");
        }
    }
}
