using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>Recursive doubling over exchanges among all ranks.</summary>
/// <remarks>log2 p exchanges of a state (one message more for the ranks past a power of two). Scratch: one state; none on one rank.</remarks>
internal sealed class ButterflyReduction : Reduction
{
    private readonly ButterflyExchange? _exchange;

    public ButterflyReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        if (Transport.Size > 1)
        {
            _exchange = new ButterflyExchange(context, [.. Enumerable.Range(0, Transport.Size)], AllocateState());
        }
    }

    public override ReductionKind Kind => ReductionKind.Butterfly;

    public override bool IsCapturable => Transport.Size == 1 || base.IsCapturable;

    private protected override string Operation => "butterfly exchange";

    private protected override void FoldAll(PartialAttention state) => _exchange?.Fold(state);
}
