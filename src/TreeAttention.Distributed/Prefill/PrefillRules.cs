using System;

namespace TreeAttention.Distributed;

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

        if (options.Attention is not
            {
                KeyLengths: null, QueryLengths: null, KeyStarts: null, PackedQueries: null, PackedKeys: null, QueryDepths: null, DfsStart: null,
                DfsEnd: null, TailMask: null, TailBias: null,
            })
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
                $"--prefill {options.Method.Name()} deals a prompt to the ranks, but each of them holds the whole cache (--algorithm single). Use --prefill chunked.");
        }
    }
}
