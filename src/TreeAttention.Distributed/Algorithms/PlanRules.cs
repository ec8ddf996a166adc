namespace TreeAttention.Distributed;

/// <summary>Which parts of a plan go together.</summary>
internal static class PlanRules
{
    /// <summary>Throws when the plan contradicts itself or does not fit the ranks.</summary>
    /// <exception cref="FaultException">The command line asks for what does not go together (2).</exception>
    /// <exception cref="ShapeMismatchException">The shards or the queries are of other sizes.</exception>
    public static void Check(ITransport transport, AttentionShape shape, ShardMap shards, AttentionPlan plan, int queryCount)
    {
        bool movesKeysOrQueries = plan.Algorithm is not (AttentionAlgorithm.Single or AttentionAlgorithm.Tree);
        if (plan.Placement == QueryPlacement.Sharded && !movesKeysOrQueries)
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--query-placement sharded belongs to ring algorithms and gather, not to {plan.Algorithm.Name()}. Use --algorithm ring, "
                + "ring-query or gather, or --query-placement replicated.");
        }

        if (plan.Reduction == ReductionKind.Lanes && (movesKeysOrQueries || shards.Layout != ShardLayout.Lanes))
        {
            throw new FaultException(
                FaultCode.CommandLine,
                $"--reproducible means --algorithm tree over --shard lanes, not {plan.Algorithm.Name()} over {shards.Layout.Name}. Leave "
                + "--algorithm and --shard away.");
        }

        int holders = plan.Algorithm == AttentionAlgorithm.Single ? 1 : transport.Size;
        if (shards.Ranks != holders || shards.Shape != shape)
        {
            throw new ShapeMismatchException(
                $"The shard map is of {shards.Ranks} ranks and {shards.Shape}, but the keys of {plan.Algorithm.Name()} lie on {holders} and the call is {shape}.");
        }

        int expected = QueryLayout.IndicesOf(plan.Placement, shards.Layout, shape, transport.Rank, transport.Size).Length;
        if (queryCount != expected)
        {
            throw new ShapeMismatchException(
                $"Rank {transport.Rank} of {transport.Size} has {queryCount} queries, but {plan.Placement.Name()} queries over "
                + $"{shards.Layout.Name} are {expected} for it.");
        }
    }
}
