using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention;

/// <summary>How the states of all ranks become one state on every rank.</summary>
public enum ReductionKind
{
    /// <summary>Chosen by rank 0 from the cost model (<see cref="ReductionChoice"/>).</summary>
    Auto,

    /// <summary>The paper's Algorithm 3 (arXiv 2408.04093): max, then sum of numerators, then sum of denominators.</summary>
    ThreeAllReduce,

    /// <summary>Max, then one sum over numerators and denominators together.</summary>
    TwoAllReduce,

    /// <summary>One all-reduce whose operator is the merge of states.</summary>
    Fused,

    /// <summary>One all-gather of the states, then the same merges on every rank.</summary>
    AllGather,

    /// <summary>Recursive doubling over exchanges.</summary>
    Butterfly,

    /// <summary>Inside each node first, then between the nodes' leaders, then back.</summary>
    TwoLevel,

    /// <summary>Each rank finishes its share of the rows, then the shares are gathered.</summary>
    AllToAll,

    /// <summary>Ranks of one node write their states into shared memory, and each merges them all.</summary>
    OneShot,

    /// <summary>The reproducible reduction: nodes of the lane tree, folded along one fixed tree.</summary>
    Lanes,
}

/// <summary>The names of <see cref="ReductionKind"/>.</summary>
internal static class ReductionKinds
{
    /// <summary>The name users write and read.</summary>
    public static string Name(this ReductionKind kind) => kind switch
    {
        ReductionKind.Auto => "auto",
        ReductionKind.ThreeAllReduce => "three-allreduce",
        ReductionKind.TwoAllReduce => "two-allreduce",
        ReductionKind.Fused => "fused",
        ReductionKind.AllGather => "allgather",
        ReductionKind.Butterfly => "butterfly",
        ReductionKind.TwoLevel => "two-level",
        ReductionKind.AllToAll => "all-to-all",
        ReductionKind.OneShot => "one-shot",
        ReductionKind.Lanes => "lanes",
        _ => throw new ArgumentOutOfRangeException(nameof(kind), kind, "No such reduction."),
    };

    /// <summary>Reads a name; <c>lanes</c> is none that users choose.</summary>
    /// <exception cref="FormatException">There is no such reduction; the message lists those there are.</exception>
    public static ReductionKind Parse(string text)
    {
        ReductionKind[] all = [.. Enum.GetValues<ReductionKind>().Where(kind => kind != ReductionKind.Lanes)];
        foreach (ReductionKind kind in all)
        {
            if (kind.Name() == text)
            {
                return kind;
            }
        }

        string names = string.Join(", ", all.Select(one => one.Name()));
        throw new FormatException($"'{text}' is no reduction; there are {names}. The lanes reduction follows from {Setting.Reproducible}.");
    }
}

/// <summary>The rule behind <see cref="ReductionKind.Auto"/>.</summary>
/// <remarks>
/// A fold of n bytes over p ranks costs latency a per message and n/b per copy: one-shot a + p·n/b, all-gather one collective
/// and p·n/b, butterfly log2 p · (a + n/b), all-to-all about 2a + 2n/b. So while p states together are small, the fewest
/// messages win: peer memory inside a node, one all-gather for a few ranks, else the butterfly. Large states go by
/// all-to-all where many ranks share one node, and over nodes by two levels, so that each crosses the network once a node.
/// </remarks>
internal static class ReductionChoice
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
