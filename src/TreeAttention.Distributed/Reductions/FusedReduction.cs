namespace TreeAttention.Distributed;

/// <summary>One all-reduce whose operator is the merge of states. One collective of a state; no scratch of ours.</summary>
internal sealed class FusedReduction : Reduction
{
    public FusedReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        if (!context.Transport.CanReduceStates)
        {
            throw new FaultException(
                FaultCode.Unavailable,
                $"--reduction fused needs a collective with a user-defined operator, which {context.Transport.Name} does not have. "
                + "Use --reduction butterfly or allgather.");
        }
    }

    public override ReductionKind Kind => ReductionKind.Fused;

    private protected override string Operation => "all-reduce of states";

    private protected override void FoldAll(PartialAttention state) => Transport.AllReduceStates(state);
}
