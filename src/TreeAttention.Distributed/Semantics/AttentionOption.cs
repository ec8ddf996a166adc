using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Semantics;

/// <summary>One option of attention: all that is known of it but its rule, which stands in <see cref="AttentionMask"/>.</summary>
/// <remarks>
/// Whoever goes through the options goes through <see cref="All"/>: the checks of a call, what ranks compare, the flags and files of
/// the command line, which has its own name for each <see cref="Setting"/>. What only one option has (bounds that ascend, depths inside a
/// tree) stays with those checks.
/// </remarks>
internal sealed class AttentionOption
{
    /// <summary>Every option, in the order of the help.</summary>
    public static IReadOnlyList<AttentionOption> All { get; } =
    [
        new()
        {
            Name = "scale",
            Text = new(Setting.Scale, "Factor on query·key; default 1/sqrt(head_dim).")
            {
                Rule = "a number that float32 holds",
                Read = (options, text) => Number(text, value => float.IsFinite((float)value)) is { } scale ? options with { Scale = scale } : null,
                Write = options => options.Scale is { } scale ? Invariant($"{scale}") : "default",
            },
            IsGiven = options => options.Scale is not null,
        },
        new()
        {
            Name = "causal",
            Text = new(Setting.Causal, "Query i sees key j when j <= i + key_len - query_len (bottom-right aligned).")
            {
                Read = (options, _) => options with { Causal = true },
                Write = options => Invariant($"{options.Causal}"),
            },
            IsGiven = options => options.Causal,
            AlignsQueries = true,
        },
        new()
        {
            Name = "window",
            Text = new(Setting.Window, "Sliding window L,R around the query's position; -1 is unbounded.")
            {
                ValueName = "L,R",
                Rule = "two integers of at least -1 as L,R",
                Read = (options, text) => Sides(text) is { } sides ? options with { WindowLeft = sides.Left, WindowRight = sides.Right } : null,
                Write = options => Invariant($"{options.WindowLeft},{options.WindowRight}"),
            },
            IsGiven = options => options.WindowLeft >= 0 || options.WindowRight >= 0,
            AlignsQueries = true,
        },
        new()
        {
            Name = "chunk-local",
            Text = new(Setting.LocalChunk, "Chunked local attention: query i sees key j <= i of its own chunk of N positions.")
            {
                ValueName = "N",
                Rule = "a whole number of at least 1",
                Read = (options, text) => int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int keys) && keys > 0
                    ? options with { LocalChunk = keys }
                    : null,
                Write = options => Invariant($"{options.LocalChunk}"),
            },
            IsGiven = options => options.LocalChunk > 0,
            AlignsQueries = true,
        },
        new()
        {
            Name = "softcap",
            Text = new(Setting.Softcap, "c: score := c * tanh(score / c), before biases; 0 is off.")
            {
                Rule = "a number from 0 to 3.4e38, where float32 ends",
                Read = (options, text) => Number(text, value => value >= 0 && float.IsFinite((float)value)) is { } cap
                    ? options with { Softcap = (float)cap }
                    : null,
                Write = options => Invariant($"{options.Softcap}"),
            },
            IsGiven = options => options.Softcap > 0,
        },
        new()
        {
            Name = "alibi",
            Arrays =
            [
                OptionArray.Of(
                    Setting.AlibiSlopes, "ALiBi slopes [query_heads] or [batch, query_heads].", "[query_heads] or [batch, query_heads]",
                    (shape, options) => [[shape.QueryHeads], [options.PackedQueries?.Length - 1 ?? shape.Batch, shape.QueryHeads], [1, shape.QueryHeads]],
                    options => options.AlibiSlopes, (options, slopes) => options with { AlibiSlopes = slopes }),
            ],
        },
        new()
        {
            Name = "sinks",
            Arrays =
            [
                OptionArray.Of(
                    Setting.Sinks, "One more logit per head in the denominator [query_heads].", "[query_heads]", (shape, _) => [[shape.QueryHeads]],
                    options => options.Sinks, (options, sinks) => options with { Sinks = sinks }) with { TakesMinusInfinity = true },
            ],
        },
        new()
        {
            Name = "key-lengths",
            Arrays =
            [
                OptionArray.Of(
                    Setting.KeyLengths, "Keys of each batch row [batch].", "[batch]", (shape, _) => [[shape.Batch]],
                    options => options.KeyLengths, (options, lengths) => options with { KeyLengths = lengths }),
            ],
            NotIn = OptionUses.Packing | OptionUses.Decode | OptionUses.Prefill,
        },
        new()
        {
            Name = "query-lengths",
            Arrays =
            [
                OptionArray.Of(
                    Setting.QueryLengths, "Queries of each batch row [batch].", "[batch]", (shape, _) => [[shape.Batch]],
                    options => options.QueryLengths, (options, lengths) => options with { QueryLengths = lengths }),
            ],
            NotIn = OptionUses.Packing | OptionUses.Prefill,
        },
        new()
        {
            Name = "leftpad",
            Arrays =
            [
                OptionArray.Of(
                    Setting.KeyStarts, "Keys of each batch row that are padding before its first [batch].", "[batch]", (shape, _) => [[shape.Batch]],
                    options => options.KeyStarts, (options, starts) => options with { KeyStarts = starts }),
            ],
            NotIn = OptionUses.Packing | OptionUses.Decode | OptionUses.Prefill,
        },
        new()
        {
            Name = "packed",
            Arrays =
            [
                OptionArray.Of(
                    Setting.PackedQueries, "Packed sequences: where each one's queries begin, and their end [sequences + 1].", "[sequences + 1]",
                    (_, _) => [[OptionArray.Free]],
                    options => options.PackedQueries, (options, bounds) => options with { PackedQueries = bounds }) with { FreeAxis = "sequences + 1" },
                OptionArray.Of(
                    Setting.PackedKeys, "Packed sequences: where each one's keys begin, and their end [sequences + 1].", "[sequences + 1]",
                    (_, _) => [[OptionArray.Free]],
                    options => options.PackedKeys, (options, bounds) => options with { PackedKeys = bounds }) with { FreeAxis = "sequences + 1" },
            ],
            NotIn = OptionUses.Decode | OptionUses.Prefill,
        },
        new()
        {
            Name = "token-tree",
            Arrays =
            [
                // The file has parents; depths and a tail mask follow from them.
                OptionArray.Of(
                    Setting.TreeParents, "Queries are nodes of a token tree: each one's parent, -1 for a root [query_len] or [batch, query_len].",
                    "[1 or batch, query_len]", (shape, _) => [[shape.QueryLength], [shape.Batch, shape.QueryLength]],
                    options => options.QueryDepths, (options, shape, parents, _) => TokenTreeMask.ApplyParents(options, shape, parents)) with { OwnName = "depths" },
            ],
            NotIn = OptionUses.Packing | OptionUses.Trees | OptionUses.Prefill,
        },
        new()
        {
            Name = "depth-first",
            Arrays =
            [
                OptionArray.Of(
                    Setting.DfsStart, "Depth-first order of the queries [batch, query_len].", "[batch, query_len]",
                    (shape, options) => OfTokens(options, shape.Batch, shape.QueryLength),
                    options => options.DfsStart, (options, start) => options with { DfsStart = start }),
                OptionArray.Of(
                    Setting.DfsEnd, "Depth-first end of the keys [batch, key_len].", "[batch, key_len]",
                    (shape, options) => OfTokens(options, shape.Batch, shape.KeyLength),
                    options => options.DfsEnd, (options, end) => options with { DfsEnd = end }),
            ],
            AlignsQueries = true,
            NotIn = OptionUses.Trees | OptionUses.Prefill,
        },
        new()
        {
            Name = "tail-mask",
            Arrays =
            [
                OptionArray.Of(
                    Setting.TailMask, "Boolean mask over the last keys [batch, query_len, tail].", "[batch, query_len, tail]",
                    (shape, _) => [[shape.Batch, shape.QueryLength, OptionArray.Free]],
                    options => options.TailMask,
                    (options, _, mask, axes) => options with { TailMask = mask, TailMaskLength = (int)axes[2] }) with
                { FreeAxis = "tail", FreeLength = options => options.TailMaskLength },
            ],
            NotIn = OptionUses.Trees | OptionUses.Prefill,
        },
        new()
        {
            Name = "tail-bias",
            Arrays =
            [
                OptionArray.Of(
                    Setting.TailBias, "Bias over the last keys [1 or batch, query_len, tail].", "[1 or batch, query_len, tail]",
                    (shape, _) => [[1, shape.QueryLength, OptionArray.Free], [shape.Batch, shape.QueryLength, OptionArray.Free]],
                    options => options.TailBias,
                    (options, _, bias, axes) => options with { TailBias = bias, TailBiasLength = (int)axes[2] }) with
                { FreeAxis = "tail", FreeLength = options => options.TailBiasLength, TakesMinusInfinity = true },
            ],
            NotIn = OptionUses.Trees | OptionUses.Prefill,
        },
        new()
        {
            Name = "lse-base",
            Text = new(Setting.LseBase, "Base of the log-sum-exp; default e, the natural logarithm. FlashInfer's is 2.")
            {
                ValueName = "e|2",
                Rule = "e or 2",
                Read = (options, text) => text switch
                {
                    "e" => options with { LseBase = LogarithmBase.Natural },
                    "2" => options with { LseBase = LogarithmBase.Two },
                    _ => null,
                },
                Write = options => options.LseBase == LogarithmBase.Two ? "2" : "e",
            },
            IsGiven = options => options.LseBase != LogarithmBase.Natural,
        },
    ];

    /// <summary>Packed sequences, on which the shapes of other options depend.</summary>
    public static AttentionOption Packed { get; } = All.Single(option => option.Name == "packed");

    /// <summary>Token trees.</summary>
    public static AttentionOption TokenTree { get; } = All.Single(option => option.Name == "token-tree");

    /// <summary>What the option is called.</summary>
    public required string Name { get; init; }

    /// <summary>The option as a flag with a short text; null where it comes as arrays.</summary>
    public OptionText? Text { get; init; }

    /// <summary>The arrays that make up the option: none where it comes as text.</summary>
    public IReadOnlyList<OptionArray> Arrays { get; init; } = [];

    /// <summary>Whether a call uses an option that comes as text; null where the arrays say it.</summary>
    public Func<AttentionOptions, bool>? IsGiven { get; init; }

    /// <summary>Positions of queries matter, so that they grow from query to query: a rotary embedding turns each by its own.</summary>
    public bool AlignsQueries { get; init; }

    /// <summary>Where the option has no meaning, or something else decides it.</summary>
    public OptionUses NotIn { get; init; }

    /// <summary>Whether a call uses the option.</summary>
    public bool IsUsedBy(AttentionOptions options) => IsGiven is not null ? IsGiven(options) : Arrays.Any(array => array.Values(options) is not null);

    /// <summary>What ranks compare: each flag with its text, or a digest of the array.</summary>
    public IEnumerable<KeyValuePair<string, string>> Settings(AttentionOptions options) => Text is not null
        ? [new($"{Text.Setting}", Text.Write(options))]
        : Arrays.Select(array => new KeyValuePair<string, string>(array.Name, array.Digest(options)));

    /// <summary>The option as text, or how many numbers its arrays have: <c>causal</c>, <c>window 4,-1</c>, <c>depth-first of 12 and 40</c>.</summary>
    public string Describe(AttentionOptions options) => Text is not null
        ? (Text.Rule is null ? Name : $"{Name} {Text.Write(options)}")
        : $"{Name} of {string.Join(" and ", Arrays.Select(array => array.Values(options)?.Length ?? 0))}";

    /// <summary>Whether options are used that have no place in a use of attention.</summary>
    public static bool HasMisplaced(AttentionOptions options, OptionUses use) => All.Any(option => option.NotIn.HasFlag(use) && option.IsUsedBy(options));

    // Packed sequences may come without their batch axis, as flash-attn has them.
    private static long[][] OfTokens(AttentionOptions options, int batch, int length) =>
        options.PackedQueries is not null ? [[batch, length], [length]] : [[batch, length]];

    private static string Invariant(FormattableString text) => text.ToString(CultureInfo.InvariantCulture);

    private static double? Number(string text, Func<double, bool> condition) =>
        double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double value) && double.IsFinite(value) && condition(value) ? value : null;

    private static (int Left, int Right)? Sides(string text)
    {
        string[] sides = text.Split(',');
        return sides.Length == 2
            && int.TryParse(sides[0], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int left)
            && int.TryParse(sides[1], NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out int right)
            && left >= -1 && right >= -1
            ? (left, right)
            : null;
    }
}

/// <summary>Uses of attention in which not every option has a meaning.</summary>
[Flags]
internal enum OptionUses
{
    /// <summary>None.</summary>
    None = 0,

    /// <summary>Packed sequences, whose lengths are their bounds.</summary>
    Packing = 1,

    /// <summary>Token trees, which are themselves a mask over the last keys.</summary>
    Trees = 2,

    /// <summary>Steps over a cache, which knows the lengths of its rows.</summary>
    Decode = 4,

    /// <summary>Prefill of a cache, which is causal and has its lengths from the prompts.</summary>
    Prefill = 8,
}

/// <summary>An option that is a switch or a short text on the command line.</summary>
/// <param name="Setting">What messages, and the command line, call it.</param>
/// <param name="Help">Its line of help.</param>
internal sealed record OptionText(Setting Setting, string Help)
{
    /// <summary>What the help calls the value; null: as the flag.</summary>
    public string? ValueName { get; init; }

    /// <summary>What the text must be; null for a switch.</summary>
    public string? Rule { get; init; }

    /// <summary>The options with this one added; null when the text breaks the rule.</summary>
    public required Func<AttentionOptions, string, AttentionOptions?> Read { get; init; }

    /// <summary>The option as text, the same in every locale.</summary>
    public required Func<AttentionOptions, string> Write { get; init; }
}
