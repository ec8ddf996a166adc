using System;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Distributed.Semantics;

/// <summary>An array of numbers that is an option or a part of it: a file on the command line.</summary>
internal sealed record OptionArray
{
    /// <summary>The length of an axis that the array itself decides.</summary>
    public const long Free = -1;

    /// <summary>What messages, and the command line, call it.</summary>
    public required Setting Setting { get; init; }

    /// <summary>Its line of help.</summary>
    public required string Help { get; init; }

    /// <summary>What faults and ranks that disagree call it.</summary>
    public string Name => OwnName ?? Setting.ToString();

    /// <summary>A name of the array where the setting is another from which it follows.</summary>
    public string? OwnName { get; init; }

    /// <summary>Type of the elements: f32, i32 or bool.</summary>
    public required ElementType Element { get; init; }

    /// <summary>The shapes in words.</summary>
    public required string Rule { get; init; }

    /// <summary>The shapes that a call may have.</summary>
    public required Func<AttentionShape, AttentionOptions, long[][]> Shapes { get; init; }

    /// <summary>What the axis of <see cref="Free"/> length is called.</summary>
    public string? FreeAxis { get; init; }

    /// <summary>The length of that axis in a call; null where any will do.</summary>
    public Func<AttentionOptions, int>? FreeLength { get; init; }

    /// <summary>-∞ is as good as a number.</summary>
    public bool TakesMinusInfinity { get; init; }

    /// <summary>The array of a call; null when it has none.</summary>
    public required Func<AttentionOptions, Array?> Values { get; init; }

    /// <summary>A digest of the array; "none" without one.</summary>
    public required Func<AttentionOptions, string> Digest { get; init; }

    /// <summary>The options of a call with the array of a file of these dimensions.</summary>
    public required Func<AttentionOptions, AttentionShape, Array, long[], AttentionOptions> With { get; init; }

    /// <summary>An array that goes into the options as it is.</summary>
    public static OptionArray Of<T>(
        Setting setting, string help, string rule, Func<AttentionShape, AttentionOptions, long[][]> shapes,
        Func<AttentionOptions, T[]?> values, Func<AttentionOptions, T[], AttentionOptions> with)
        where T : unmanaged => Of(setting, help, rule, shapes, values, (options, _, array, _) => with(options, array));

    /// <summary>An array from which, with its dimensions, more than itself follows.</summary>
    public static OptionArray Of<T>(
        Setting setting, string help, string rule, Func<AttentionShape, AttentionOptions, long[][]> shapes,
        Func<AttentionOptions, T[]?> values, Func<AttentionOptions, AttentionShape, T[], long[], AttentionOptions> with)
        where T : unmanaged => new()
        {
            Setting = setting,
            Help = help,
            Element = typeof(T) == typeof(float) ? ElementType.Float32 : typeof(T) == typeof(int) ? ElementType.Int32 : ElementType.Boolean,
            Rule = rule,
            Shapes = shapes,
            Values = values,
            Digest = options => values(options) is { } array ? Fingerprint.TextOf(MemoryMarshal.AsBytes<T>(array)) : "none",
            With = (options, shape, array, axes) => with(options, shape, (T[])array, axes),
        };

    /// <summary>Throws when a call has the array with another number of elements than its shapes have.</summary>
    /// <exception cref="ShapeMismatchException">Which array, and the rule.</exception>
    public void RequireLength(AttentionShape shape, AttentionOptions options)
    {
        if (Values(options) is not { } values || (FreeAxis is not null && FreeLength is null))
        {
            return;
        }

        long[] allowed = [.. Shapes(shape, options).Select(axes => axes.Aggregate(1L, (count, axis) => count * (axis == Free ? FreeLength!(options) : axis))).Distinct()];
        if (!allowed.Contains(values.LongLength))
        {
            throw new ShapeMismatchException($"{Name} has {values.LongLength} elements but {Rule} asks for {string.Join(" or ", allowed)}.");
        }
    }
}
