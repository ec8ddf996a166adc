using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>Each rank gets its share of the rows from all ranks, folds it in the canonical order, and the shares are gathered.</summary>
/// <remarks>
/// Rank r has rows [rows·r/p, rows·(r+1)/p); a rank without rows takes part with nothing. The gather is of equal parts: a
/// share is padded to the largest one. Two collectives. Scratch, with m the floats of the largest share and s of this
/// rank's: p·m (packed, then gathered) + p·s (received) + m (finished).
/// </remarks>
internal sealed class AllToAllReduction : Reduction
{
    private readonly Region _packed;
    private readonly Region _outgoing;
    private readonly Region _received;
    private readonly Region _finished;
    private readonly long[] _outgoingBytes;
    private readonly long[] _incomingBytes;
    private readonly PartialAttention[] _mine;
    private readonly FoldStep[] _steps;

    public AllToAllReduction(RankContext context, int rows, int valueDim)
        : base(context, rows, valueDim)
    {
        int ranks = Transport.Size;
        long largest = FloatsOf(LargestShare(rows, ranks));
        long own = FloatsOf(End(Transport.Rank) - First(Transport.Rank));
        _packed = Allocate(ranks * largest);
        _received = Allocate(ranks * own);
        _finished = Allocate(largest);
        _outgoing = _packed.Slice(0, FloatsOf(rows));
        _outgoingBytes = new long[ranks];
        _incomingBytes = new long[ranks];
        for (int rank = 0; rank < ranks; rank++)
        {
            _outgoingBytes[rank] = FloatsOf(End(rank) - First(rank)) * sizeof(float);
            _incomingBytes[rank] = own * sizeof(float);
        }

        _mine = StatesIn(_received, ranks, End(Transport.Rank) - First(Transport.Rank), valueDim);
        _steps = FoldTree.StepsFor(ranks);
    }

    public override ReductionKind Kind => ReductionKind.AllToAll;

    private protected override string Operation => "all-to-all";

    /// <summary>Rows of the largest share.</summary>
    internal static int LargestShare(int rows, int ranks) => (int)(((long)rows + ranks - 1) / ranks);

    /// <summary>First row of a rank's share.</summary>
    internal static int FirstRow(int rows, int rank, int ranks) => (int)((long)rows * rank / ranks);

    private protected override void FoldAll(PartialAttention state)
    {
        long at = 0;
        for (int rank = 0; rank < Transport.Size; rank++)
        {
            at = Move(state, First(rank), End(rank), _outgoing, at, pack: true);
        }

        Transport.AllToAll(_outgoing, _outgoingBytes, _received, _incomingBytes);
        FoldTree.Fold(Context.Device, _mine, _steps);
        Region folded = _mine[0].Region;
        Context.Device.Copy(folded, _finished.Slice(0, folded.Count));
        Transport.AllGather(_finished, _packed);
        for (int rank = 0; rank < Transport.Size; rank++)
        {
            Move(state, First(rank), End(rank), _packed, rank * _finished.Count, pack: false);
        }
    }

    // A share in a packed region is itself a state: its outputs, then its maxima, then its sums.
    private long Move(PartialAttention state, int first, int end, Region packed, long at, bool pack)
    {
        int rows = end - first;
        at = MovePart(state.OutputRegion.Slice((long)first * ValueDim, (long)rows * ValueDim), packed, at, pack);
        at = MovePart(state.MaxRegion.Slice(first, rows), packed, at, pack);
        return MovePart(state.SumRegion.Slice(first, rows), packed, at, pack);
    }

    private long MovePart(Region part, Region packed, long at, bool pack)
    {
        Region place = packed.Slice(at, part.Count);
        Context.Device.Copy(pack ? part : place, pack ? place : part);
        return at + part.Count;
    }

    private long FloatsOf(int rows) => PartialAttention.FloatsFor(rows, ValueDim);

    private int First(int rank) => FirstRow(Rows, rank, Transport.Size);

    private int End(int rank) => FirstRow(Rows, rank + 1, Transport.Size);
}
