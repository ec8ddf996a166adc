using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>The rule behind <see cref="ReductionKind.Auto"/>.</summary>
/// <remarks>
/// A fold of n bytes over p ranks costs latency a per message and n/b per copy: one-shot a + p·n/b, all-gather one collective
/// and p·n/b, butterfly log2 p · (a + n/b), all-to-all about 2a + 2n/b. So while p states together are small, the fewest
/// messages win: peer memory inside a node, one all-gather for a few ranks, else the butterfly. Large states go by
/// all-to-all where many ranks share one node, and over nodes by two levels, so that each crosses the network once a node.
/// </remarks>
public static class ReductionChoice
{
    private const long SmallTogether = 1 << 20; // bytes of all states that one rank may read per fold
    private const long Large = 1 << 20; // bytes of one state from which on bandwidth, not latency, is what a fold costs
    private const int FewRanks = 4;

    /// <summary>The reduction for states of <paramref name="stateBytes"/> on ranks with these nodes.</summary>
    /// <param name="nodes">Node of each rank.</param>
    /// <param name="stateBytes">Bytes of one state.</param>
    /// <param name="sharesMemory">Ranks of a node may use peer memory; it keeps the host waiting where all else is in stream order.</param>
    public static ReductionKind For(IReadOnlyList<int> nodes, long stateBytes, bool sharesMemory = true)
    {
        int ranks = nodes.Count;
        int nodeCount = nodes.Distinct().Count();
        if (ranks == 1)
        {
            return ReductionKind.Butterfly; // nothing to exchange
        }

        if (ranks * stateBytes <= SmallTogether)
        {
            return nodeCount == 1 && sharesMemory ? ReductionKind.OneShot : ranks <= FewRanks ? ReductionKind.AllGather : ReductionKind.Butterfly;
        }

        if (stateBytes < Large)
        {
            return ReductionKind.Butterfly;
        }

        if (nodeCount > 1)
        {
            return nodeCount < ranks ? ReductionKind.TwoLevel : ReductionKind.Butterfly;
        }

        return ranks > FewRanks ? ReductionKind.AllToAll : ReductionKind.Butterfly;
    }

    /// <summary>Rank 0 decides, every rank learns it through the control plane.</summary>
    internal static ReductionKind Agree(RankContext context, IReadOnlyList<int> nodes, long stateBytes) =>
        (ReductionKind)context.Control.AllGather(new[] { (byte)For(nodes, stateBytes, !context.Transport.IsStreamOrdered) })[0][0];
}
