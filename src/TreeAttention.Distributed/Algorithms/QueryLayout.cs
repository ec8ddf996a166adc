using System;
using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>Which queries a rank has: all of them, or the shard layout applied to the query axis.</summary>
public static class QueryLayout
{
    /// <summary>Indices of the rank's queries in their whole sequence, in the order of its query block.</summary>
    /// <exception cref="FaultException">Explicit shard lengths do not fit the query axis (2).</exception>
    public static int[] IndicesOf(QueryPlacement placement, ShardLayout layout, AttentionShape shape, int rank, int ranks)
    {
        if (placement == QueryPlacement.Replicated)
        {
            return [.. Enumerable.Range(0, shape.QueryLength)];
        }

        if (layout.Name.StartsWith("lengths:", StringComparison.Ordinal) && shape.QueryLength != shape.KeyLength)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--shard-lengths names {shape.KeyLength} keys, but there are {shape.QueryLength} queries to shard with "
                + "--query-placement sharded: with explicit lengths both axes must be equally long. Use --shard contiguous, or "
                + "--query-placement replicated.");
        }

        IReadOnlyList<KeyRun> runs = layout.RunsOf(rank, ranks, shape.QueryLength);
        return [.. runs.SelectMany(run => Enumerable.Range(0, run.Count).Select(run.PositionAt))];
    }
}
