using System;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention;

/// <summary>What a prefill attends with: prompts, meaning of attention, how the ranks share the work.</summary>
public sealed record PrefillOptions
{
    /// <summary>How the ranks work together.</summary>
    public PrefillMethod Method { get; init; } = PrefillMethod.Ring;

    /// <summary>[prompts] tokens of each prompt, also none.</summary>
    public required int[] Lengths { get; init; }

    /// <summary>[prompts] the cache's row of each prompt, all different; every row in order when null.</summary>
    public int[]? Rows { get; init; }

    /// <summary>Query heads; a multiple of the cache's KV heads.</summary>
    public required int QueryHeads { get; init; }

    /// <summary>
    /// Scale, window, chunks, softcap, ALiBi ([query_heads] or [prompts, query_heads]), sinks, and the base of the log-sum-exp. A prefill
    /// is causal whatever is said here: each query attends to the tokens up to its own.
    /// </summary>
    public AttentionOptions Attention { get; init; } = new();

    /// <summary>Which tokens of each prompt a rank has, with ring and gather: zigzag balances causal work. Every row is dealt by itself.</summary>
    public ShardLayout Layout { get; init; } = ShardLayout.Zigzag;

    /// <summary>Tokens of a chunk, with chunked.</summary>
    public int Chunk { get; init; } = 2048;

    /// <summary>How chunks are attended to, as for <see cref="DecodeOptions.Plan"/>.</summary>
    public AttentionPlan Plan { get; init; } = new(AttentionAlgorithm.Tree, ReductionKind.Auto, QueryPlacement.Replicated);
}

/// <summary>How the ranks attend to a prompt while it enters a cache.</summary>
public enum PrefillMethod
{
    /// <summary>Keys and values of the prompt travel from rank to rank; every rank has its share of the prompt.</summary>
    Ring,

    /// <summary>Every rank gathers the keys and values of the whole prompt; every rank has its share of the queries.</summary>
    Gather,

    /// <summary>Every rank has all queries, and decodes a chunk of them after the other: for prompts that continue what the cache holds, and for the same bits on any number of ranks.</summary>
    Chunked,
}

/// <summary>The names of <see cref="PrefillMethod"/>.</summary>
internal static class PrefillMethods
{
    /// <summary>The name users write.</summary>
    public static string Name(this PrefillMethod method) => method switch
    {
        PrefillMethod.Ring => "ring",
        PrefillMethod.Gather => "gather",
        PrefillMethod.Chunked => "chunked",
        _ => throw new ArgumentOutOfRangeException(nameof(method), method, "No such method."),
    };
}

/// <summary>Which prompts and options fit a cache.</summary>
internal static class PrefillRules
{
    /// <summary>Throws when the options contradict the cache or themselves.</summary>
    /// <exception cref="ShapeMismatchException">Rows, lengths or options do not fit.</exception>
    /// <exception cref="FaultException">The method does not go with the cache (2).</exception>
    public static void Check(ShardedKvCache cache, PrefillOptions options, int[] rows)
    {
        DecodeRules.RequireDifferent(cache, rows);
        if (options.Lengths.Length != rows.Length || Array.Exists(options.Lengths, length => length < 0 || length > cache.Options.MaxLength))
        {
            throw new ShapeMismatchException(
                $"A prefill of {rows.Length} rows was given the lengths {string.Join(',', options.Lengths)}: there must be one for each row, from 0 to the "
                + $"{cache.Options.MaxLength} tokens that a row may have.");
        }

        if (AttentionOption.HasMisplaced(options.Attention, OptionUses.Prefill))
        {
            throw new ShapeMismatchException(
                "A prefill has its lengths from its prompts and the cache, and is causal: it takes no lengths, packed sequences, trees or tails.");
        }

        if (options.Method == PrefillMethod.Chunked)
        {
            ArgumentOutOfRangeException.ThrowIfLessThan(options.Chunk, 1, nameof(options));
            return;
        }

        if (cache.Options.Replicated)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"{Setting.Prefill} {options.Method.Name()} deals a prompt to the ranks, but each of them holds the whole cache ({Setting.ReplicatedCache}). Use {Setting.PrefillChunked}.");
        }
    }
}
