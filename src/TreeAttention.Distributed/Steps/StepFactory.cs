using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Steps;

/// <summary>From a plan to the step that follows it.</summary>
internal static class StepFactory
{
    /// <summary>Makes a step. Every rank calls it with the same problem, shards and plan.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="problem">Shape, options and masks.</param>
    /// <param name="shards">Which keys each rank has; limits are shared before, where extreme values matter.</param>
    /// <param name="plan">Algorithm, reduction, placement of queries.</param>
    /// <param name="queryCount">Queries of this rank's blocks: all, or its share (<see cref="QueryLayout"/>).</param>
    /// <exception cref="FaultException">The plan contradicts itself (2), or a part it needs is missing (69).</exception>
    public static AttentionStep Create(RankContext context, AttentionProblem problem, ShardMap shards, AttentionPlan plan, int queryCount)
    {
        PlanRules.Check(context.Transport, problem.Shape, shards, plan, queryCount);
        if (plan.Reduction == ReductionKind.Lanes)
        {
            return new LanesStep(context, problem, shards, queryCount);
        }

        bool replicated = plan.Placement == QueryPlacement.Replicated;
        switch (plan.Algorithm)
        {
            case AttentionAlgorithm.Single:
                return new SingleStep(context, problem, shards, queryCount);
            case AttentionAlgorithm.Tree:
                return new TreeStep(context, problem, shards, plan, queryCount);
            case AttentionAlgorithm.RingQuery when replicated:
                return new RingPartialStep(context, problem, shards, queryCount);
            case AttentionAlgorithm.RingQuery:
                return new RingQueryStep(context, problem, shards, queryCount);
            case AttentionAlgorithm.Gather:
                return new GatherStep(context, problem, shards, queryCount);
            default:
                return new RingStep(context, problem, shards, queryCount, overlap: plan.Algorithm == AttentionAlgorithm.Ring);
        }
    }
}
