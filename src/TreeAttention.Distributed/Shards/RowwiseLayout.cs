using System.Collections.Generic;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>A layout applied to each of several rows that lie one after the other on one axis: every rank has its share of every row.</summary>
/// <param name="inner">The layout of a row.</param>
/// <param name="bounds">[rows + 1] where each row begins, and the end.</param>
internal sealed class RowwiseLayout(ShardLayout inner, int[] bounds) : ShardLayout
{
    public override string Name => $"{inner.Name} of {bounds.Length - 1} rows";

    public override IReadOnlyList<KeyRun> RunsOf(int rank, int ranks, int length) =>
    [
        .. Enumerable.Range(0, bounds.Length - 1).SelectMany(row => inner
            .RunsOf(rank, ranks, bounds[row + 1] - bounds[row])
            .Select(run => run with { First = run.First + bounds[row] })),
    ];
}
