using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>The cases of <c>treeattn verify</c>: a pairwise covering array over plans, layouts, types, sizes and options.</summary>
/// <remarks>
/// Every plan meets every layout, and both meet every level of every size and option, as do these each other, so far as they
/// go together: the reproducible plan has its own layout, explicit shard lengths with sharded queries ask for as many queries
/// as keys, and there are as many queries as keys on short contexts only.
/// </remarks>
internal sealed class VerifyCases
{
    private const int PlanFactor = 0, LayoutFactor = 1, TypeFactor = 2, ValueFactor = 3, GroupFactor = 4, HeadDimFactor = 5, KeyFactor = 6,
        BatchFactor = 7, QueryFactor = 8, KvHeadFactor = 9, FirstOption = 10;

    private const int LanesLayout = 4, LengthsLayout = 5;
    private const int AsManyAsKeys = 0;
    private const int MostKeysOfSquares = 33;

    private static readonly ElementType[] _types = [ElementType.Float32, ElementType.Float16, ElementType.BFloat16, ElementType.Float8E4M3];
    private static readonly int[] _groups = [1, 2, 3, 4, 8, 16];
    private static readonly int[] _headDims = [1, 15, 16, 64, 80, 96, 128, 192, AttentionShape.MaxHeadDim];
    private static readonly int[] _keyLengths = [0, 1, 2, 7, MostKeysOfSquares, 100, 513, 1300]; // 513 and more: several pages
    private static readonly int[] _batches = [1, 3];
    private static readonly int[] _queryLengths = [AsManyAsKeys, 1, 2, 9]; // 9 of a group of 16: enough rows for the prefill kernel

    private readonly int _ranks;
    private readonly int _seed;
    private readonly IReadOnlyList<VerifyPlan> _plans;
    private readonly IReadOnlyList<int[]> _rows;

    public VerifyCases(IReadOnlyList<VerifyPlan> plans, int ranks, int seed)
    {
        (_plans, _ranks, _seed) = (plans, ranks, seed);
        _rows = CoveringArray.Pairs(
            [
                plans.Count, LengthsLayout + 1, _types.Length, 4, _groups.Length, _headDims.Length, _keyLengths.Length, _batches.Length,
                _queryLengths.Length, 2, .. OptionLevels.Counts,
            ],
            GoTogether);
    }

    /// <summary>Cases of one pass over the array.</summary>
    public int Count => _rows.Count;

    /// <summary>A case; beyond <see cref="Count"/> the array is gone through again with other numbers.</summary>
    public VerifyCase At(int index)
    {
        int[] row = _rows[index % _rows.Count];
        int seed = unchecked(_seed + index) & int.MaxValue;
        var random = new Random(seed);
        int headDim = _headDims[row[HeadDimFactor]];
        int valueDim = row[ValueFactor] switch
        {
            0 => headDim,
            1 => (headDim + 1) / 2,
            2 => random.Next(1, 100),
            _ => random.Next(1, headDim + 1),
        };
        int keys = _keyLengths[row[KeyFactor]];
        int queries = row[QueryFactor] == AsManyAsKeys ? keys : _queryLengths[row[QueryFactor]];
        int kvHeads = row[KvHeadFactor] + 1;
        var shape = new AttentionShape(
            _batches[row[BatchFactor]], queries, keys, kvHeads * _groups[row[GroupFactor]], kvHeads, headDim, valueDim);
        AttentionOptions options = OptionLevels.Draw(shape, row[FirstOption..], seed);
        return new VerifyCase(
            seed, new AttentionProblem(shape, options), _types[row[TypeFactor]], row[ValueFactor] == 3, _plans[row[PlanFactor]],
            LayoutOf(row[LayoutFactor], keys, random));
    }

    // A row with open levels can be completed: what an open level would have to be, it can be.
    private bool GoTogether(int[] row)
    {
        (int layout, int queries) = (row[LayoutFactor], row[QueryFactor]);
        VerifyPlan? plan = row[PlanFactor] == CoveringArray.Open ? null : _plans[row[PlanFactor]];
        bool shortContext = row[KeyFactor] == CoveringArray.Open || _keyLengths[row[KeyFactor]] <= MostKeysOfSquares;
        bool sharesLengths = plan is { IsSharded: true } && layout == LengthsLayout;
        return (plan is not { IsReproducible: true } || layout is CoveringArray.Open or LanesLayout)
            && (!sharesLengths || queries is CoveringArray.Open or AsManyAsKeys)
            && (shortContext || !(sharesLengths || queries == AsManyAsKeys));
    }

    private ShardLayout LayoutOf(int level, int keys, Random random) => level switch
    {
        0 => ShardLayout.Contiguous,
        1 => ShardLayout.Zigzag,
        2 => ShardLayout.Striped,
        3 => ShardLayout.Cyclic(random.Next(2, 20)),
        LanesLayout => ShardLayout.Lanes,
        _ => ShardLayout.Lengths(LengthsOf(keys, random)),
    };

    // One rank at least has no keys, where there are two or more.
    private int[] LengthsOf(int keys, Random random)
    {
        int[] lengths = new int[_ranks];
        int empty = _ranks > 1 ? random.Next(_ranks) : -1;
        int last = Enumerable.Range(0, _ranks).Last(rank => rank != empty);
        for (int rank = 0; rank < last; rank++)
        {
            lengths[rank] = rank == empty ? 0 : random.Next(keys + 1);
            keys -= lengths[rank];
        }

        lengths[last] = keys;
        return lengths;
    }
}
