using System;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>Which options of a decode step fit a growing cache.</summary>
internal static class DecodeRules
{
    /// <summary>Throws when the options contradict the cache or themselves.</summary>
    /// <exception cref="ShapeMismatchException">Rows are none of the cache's, or twice the same; lengths of keys are given.</exception>
    /// <exception cref="FaultException">The algorithm does not go with a growing cache (2).</exception>
    public static void Check(ShardedKvCache cache, DecodeOptions options, int[] rows)
    {
        RequireDifferent(cache, rows);
        if (options.Attention is not { KeyLengths: null, KeyStarts: null, PackedQueries: null, PackedKeys: null })
        {
            throw new ShapeMismatchException(
                "Lengths and left padding of rows are those of the cache: a decode step takes no key lengths, key starts or packed sequences.");
        }

        AttentionAlgorithm algorithm = options.Plan.Algorithm;
        if ((algorithm == AttentionAlgorithm.Single) != cache.Options.Replicated)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--algorithm {algorithm.Name()} needs a cache that is {(algorithm == AttentionAlgorithm.Single ? "replicated on" : "sharded over")} the ranks.");
        }

        if (options.Plan.Placement != QueryPlacement.Replicated)
        {
            throw new FaultException(FaultCode.CommandLine, "Decode queries are on every rank: --query-placement sharded belongs to prefill.");
        }
    }

    /// <summary>Throws unless the rows of a call are different rows of the cache.</summary>
    /// <exception cref="ShapeMismatchException">They are not.</exception>
    public static void RequireDifferent(ShardedKvCache cache, int[] rows)
    {
        if (rows.Distinct().Count() != rows.Length || Array.Exists(rows, row => row < 0 || row >= cache.Options.Rows))
        {
            throw new ShapeMismatchException(
                $"The rows {string.Join(',', rows)} of a call must be different rows of the cache, which has 0 to {cache.Options.Rows - 1}.");
        }
    }
}
