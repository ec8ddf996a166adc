using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>What the ranks of an in-process group share: where they wait, meet, and show each other regions.</summary>
internal sealed class GroupBoard
{
    private readonly RankBarrier _barrier;
    private readonly RankChannel[] _channels;

    public GroupBoard(IReadOnlyList<int> nodes, GroupFault fault)
    {
        Nodes = nodes;
        Size = nodes.Count;
        Members = new GroupMembers(Size, fault);
        Gates = new RankGate[Size];
        Shown = new Region[Size];
        PartBytes = new long[Size * Size];
        Splits = new SplitChoice[Size];
        Groups = new GroupBoard[Size];
        Peers = new PeerBoard[Size];
        Steps = FoldTree.StepsFor(Size);
        _barrier = new RankBarrier(Size);
        _channels = new RankChannel[Size * Size];
        for (int from = 0; from < Size; from++)
        {
            Gates[from] = new RankGate(Size);
            for (int to = 0; to < Size; to++)
            {
                _channels[(from * Size) + to] = new RankChannel(from, to);
            }
        }
    }

    /// <summary>What a rank gives to a split.</summary>
    public readonly record struct SplitChoice(int Color, int Key);

    public int Size { get; }

    public IReadOnlyList<int> Nodes { get; }

    public GroupMembers Members { get; }

    public RankGate[] Gates { get; }

    /// <summary>The canonical fold of as many states as there are ranks.</summary>
    public FoldStep[] Steps { get; }

    /// <summary>[size] what each rank shows in the collective under way.</summary>
    public Region[] Shown { get; }

    /// <summary>[size, size] bytes of the part that a rank sends to another.</summary>
    public long[] PartBytes { get; }

    /// <summary>[size] what each rank gave to the split under way.</summary>
    public SplitChoice[] Splits { get; }

    /// <summary>[size] the group that a rank founded for its color.</summary>
    public GroupBoard[] Groups { get; }

    /// <summary>[size] the peer memory that rank 0 founded.</summary>
    public PeerBoard[] Peers { get; }

    public RankChannel Channel(int from, int to) => _channels[(from * Size) + to];

    /// <summary>Returns when all ranks are here; what each wrote before is what all read after.</summary>
    public void Meet(int rank) => _barrier.Meet(rank, Gates, Members);
}
