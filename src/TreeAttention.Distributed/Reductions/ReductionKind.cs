using System;
using System.Linq;

namespace TreeAttention.Distributed;

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

    /// <summary>The reproducible reduction: nodes of the lane tree, folded along one fixed tree. Follows from --reproducible.</summary>
    Lanes,
}

/// <summary>The names of <see cref="ReductionKind"/>.</summary>
public static class ReductionKinds
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
        throw new FormatException($"'{text}' is no reduction; there are {names}. The lanes reduction follows from --reproducible.");
    }
}
