using System.Collections.Generic;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Reductions;

/// <summary>Ranks of one node write their states into memory that all can read, and each merges them all: no message at all.</summary>
/// <remarks>
/// Each rank starts with its own state and walks up the canonical tree, folding in the sibling's subtree at each level;
/// the merge is commutative, so every rank gets the bits of the canonical fold. Payload: one state. Scratch: one state for
/// each level of the largest sibling's subtree (none for up to 3 ranks), beside the slots.
/// </remarks>
internal sealed class OneShotReduction : Reduction
{
    private readonly IPeerMemory _peers;
    private readonly PartialAttention[][] _slots; // [set][rank]
    private readonly List<SlotFold> _program = [];
    private readonly List<PartialAttention> _temporaries = [];
    private int _round;

    public OneShotReduction(RankContext context, int rows, int valueDim, IPeerMemory peers)
        : base(context, rows, valueDim)
    {
        _peers = peers;
        _slots = new PartialAttention[2][];
        for (int set = 0; set < 2; set++)
        {
            _slots[set] = new PartialAttention[Transport.Size];
            for (int rank = 0; rank < Transport.Size; rank++)
            {
                Region slot = peers.SlotOf(rank) with { Type = ElementType.Float32 };
                _slots[set][rank] = new PartialAttention(slot, rows, valueDim);
            }

            // An empty round: it shows the other set of slots.
            peers.Publish();
            peers.AwaitAll();
            peers.NextRound();
        }

        Plan(new FoldNode(Transport.Size));
        for (int i = 0; i < ScratchStates(Transport.Rank, Transport.Size); i++)
        {
            _temporaries.Add(AllocateState());
        }
    }

    public override ReductionKind Kind => ReductionKind.OneShot;

    /// <inheritdoc/>
    /// <remarks>Every round the host tells the others which slots are next.</remarks>
    public override bool IsCapturable => false;

    private protected override string Operation => "one-shot exchange";

    /// <summary>Slots for the states of all ranks; null where the ranks share no memory.</summary>
    public static IPeerMemory? SharePeerMemory(RankContext context, int rows, int valueDim) =>
        context.Transport.SharePeerMemory(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float));

    /// <summary>The fault of ranks that share no memory.</summary>
    public static FaultException NoPeerMemory(RankContext context) => new(
        FaultCode.Unavailable,
        $"{Setting.ReductionOneShot} needs memory that all {context.Transport.Size} ranks share, but they are not all on one node, or the "
        + $"{context.Transport.Name} transport cannot share memory. Use {Setting.Reduction} butterfly or two-level.");

    /// <summary>States of scratch of a rank.</summary>
    internal static int ScratchStates(int rank, int ranks)
    {
        int most = 0;
        for (var node = new FoldNode(ranks); !node.IsLeaf; node = node.ChildWith(rank))
        {
            most = System.Math.Max(most, node.SiblingOf(rank).Depth);
        }

        return most;
    }

    /// <inheritdoc/>
    protected override void Dispose(bool disposing)
    {
        if (disposing)
        {
            _peers.Dispose();
        }

        base.Dispose(disposing);
    }

    private protected override void FoldAll(PartialAttention state)
    {
        PartialAttention[] slots = _slots[_round++ & 1];
        Context.Device.Copy(state.Region, slots[Transport.Rank].Region);
        if (slots[Transport.Rank].Region.Place != MemoryPlace.Device)
        {
            Context.Device.Synchronize(); // others read it without the device's knowledge
        }

        Transport.Traffic.CountPayload(state.Region.Bytes);
        _peers.Publish();
        _peers.AwaitAll();
        foreach (SlotFold fold in _program)
        {
            PartialAttention into = fold.Into < 0 ? state : _temporaries[fold.Into];
            PartialAttention from = fold.IsSlot ? slots[fold.From] : _temporaries[fold.From];
            if (fold.IsCopy)
            {
                Context.Device.Copy(from.Region, into.Region);
            }
            else
            {
                Context.Device.Merge(into, from);
            }
        }

        _peers.NextRound();
    }

    // Into -1 is the rank's own state.
    private readonly record struct SlotFold(int Into, int From, bool IsSlot, bool IsCopy);

    private void Plan(FoldNode node)
    {
        if (node.IsLeaf)
        {
            return;
        }

        Plan(node.ChildWith(Transport.Rank));
        Add(node.SiblingOf(Transport.Rank), -1);
    }

    // Folds a subtree of other ranks into a temporary, using those after it.
    private void Add(FoldNode node, int into)
    {
        if (node.IsLeaf)
        {
            _program.Add(new SlotFold(into, node.Rank, IsSlot: true, IsCopy: false));
            return;
        }

        Evaluate(node, into + 1);
        _program.Add(new SlotFold(into, into + 1, IsSlot: false, IsCopy: false));
    }

    private void Evaluate(FoldNode node, int into)
    {
        FoldNode deep = node.Left.Depth >= node.Right.Depth ? node.Left : node.Right;
        if (deep.IsLeaf)
        {
            _program.Add(new SlotFold(into, deep.Rank, IsSlot: true, IsCopy: true));
        }
        else
        {
            Evaluate(deep, into);
        }

        Add(ReferenceEquals(deep, node.Left) ? node.Right : node.Left, into);
    }
}
