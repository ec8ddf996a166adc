using System;
using System.Numerics;
using TreeAttention.Devices.Cpu.Kernels;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Scheduling;

/// <summary>Attention over lanes as units of work: a row tile over an aligned part of a lane node each.</summary>
/// <remarks>
/// A unit folds its part of the binary tree with one state per level. Parts of a node are then folded along the upper levels of
/// the same tree, so how many parts there are changes no bit.
/// </remarks>
internal sealed unsafe class LaneWork(WorkerPool pool, TileWorkers workers, MemoryAccount account) : IWork, IDisposable
{
    private const int UnitsPerThread = 4;
    private const int Levels = 9;

    private readonly int[] _firstPage = new int[LaneTree.Lanes + 1];
    private readonly Scratch _parts = new(account);
    private readonly Scratch _levels = new(account);
    private readonly LaneMerge _merge = new();
    private AttentionProblem _problem = null!;
    private QueryBlock _queries = null!;
    private KeyValueShard _shard = null!;
    private TileGrid _grid;
    private TileKind _kind;
    private LaneNode _node;
    private int _partsOfNode;
    private long _slot;
    private PartialAttention _into = null!;

    /// <summary>Runs the whole call.</summary>
    /// <exception cref="ShapeMismatchException">The shard's pages are not those of lanes, or there is not one partial for each node.</exception>
    internal void Attend(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        if (nodes.Length != into.Length)
        {
            throw new ShapeMismatchException($"{nodes.Length} lane nodes need as many partials, not {into.Length}.");
        }

        (_problem, _queries, _shard) = (problem, queries, shard);
        _kind = workers.KindFor(problem.Shape, shard.Plan.Type, isCanonical: true);
        _grid = workers.GridFor(_kind, problem.Shape, queries.Count);
        if (_grid.Count == 0)
        {
            return;
        }

        LaneTree.IndexPages(shard.Plan, _firstPage);
        workers.Reserve(_kind, _grid.RowsPerTile);
        _slot = PartialAttention.FloatsFor(_grid.RowsPerTile, problem.Shape.ValueDim);
        _ = _levels.Floats(pool.Threads * (Levels + 1) * _slot);
        for (int i = 0; i < nodes.Length; i++)
        {
            AttendNode(nodes[i], into[i]);
        }
    }

    void IWork.Run(int unit, int worker)
    {
        (int number, int part) = Math.DivRem(unit, _partsOfNode);
        RowSlice slice = _grid[number];
        int size = _node.Size / _partsOfNode;
        StateRows into = LaneMerge.Part(_into, _parts.Floats(0), _slot, _partsOfNode, number, part, slice);
        TileWorker tile = workers[_kind, worker];
        tile.Load(_problem, _queries, _shard.Plan, slice.Batch, slice.KvHead, slice.First, slice.Count);
        float* levels = _levels.Floats(0) + (worker * (Levels + 1) * _slot);
        Fold(tile, slice, new LaneNode(_node.First + (part * size), size), into, levels);
    }

    public void Dispose()
    {
        _parts.Dispose();
        _levels.Dispose();
    }

    private void AttendNode(LaneNode node, PartialAttention into)
    {
        (_node, _into) = (node, into);
        int units = pool.Threads == 1 ? 1 : UnitsPerThread * pool.Threads;
        int wanted = (units + _grid.Count - 1) / _grid.Count;
        _partsOfNode = (int)Math.Min(BitOperations.RoundUpToPowerOf2((uint)wanted), (uint)node.Size);
        float* parts = _parts.Floats((_partsOfNode - 1) * _grid.Count * _slot);
        pool.Run(this, _grid.Count * _partsOfNode);
        if (_partsOfNode > 1)
        {
            _merge.Prepare(_grid, into, parts, _slot, _partsOfNode);
            pool.Run(_merge, _grid.Count);
        }
    }

    // One state per level: the left half is folded in place, the right half one level down.
    private void Fold(TileWorker tile, RowSlice slice, LaneNode node, StateRows into, float* levels)
    {
        int pages = slice.Batch * _shard.Plan.PagesPerBatch;
        int first = _firstPage[node.First];
        int end = _firstPage[node.First + node.Size];
        if (first == end)
        {
            into.Clear();
            return;
        }

        var other = StateRows.At(levels + (BitOperations.Log2((uint)node.Size) * _slot), into.Rows, into.ValueDim);
        if (node.Size > 1)
        {
            int half = node.Size / 2;
            Fold(tile, slice, new LaneNode(node.First, half), into, levels);
            Fold(tile, slice, new LaneNode(node.First + half, half), other, levels);
            into.FoldFrom(other);
            return;
        }

        tile.Attend(_shard, pages + first, pages + first + 1, into);
        for (int page = first + 1; page < end; page++)
        {
            tile.Attend(_shard, pages + page, pages + page + 1, other);
            into.FoldFrom(other);
        }
    }
}

/// <summary>Folds the parts of a lane node along the upper levels of its tree: a unit is a row tile.</summary>
internal sealed unsafe class LaneMerge : IWork
{
    private TileGrid _grid;
    private PartialAttention _into = null!;
    private float* _slots;
    private long _slotFloats;
    private int _parts;

    /// <summary>A part of a tile: part 0 lies in the partial itself.</summary>
    internal static StateRows Part(
        PartialAttention into, float* slots, long slotFloats, int parts, int tile, int part, RowSlice slice) => part == 0
            ? StateRows.Of(into, slice.FirstOfPartial, slice.Count)
            : MergeWork.Slot(slots, slotFloats, parts, tile, part, slice.Count, into.ValueDim);

    /// <summary>Takes the call.</summary>
    internal void Prepare(TileGrid grid, PartialAttention into, float* slots, long slotFloats, int parts)
    {
        (_grid, _into, _slotFloats, _parts) = (grid, into, slotFloats, parts);
        _slots = slots;
    }

    void IWork.Run(int unit, int worker)
    {
        RowSlice slice = _grid[unit];
        for (int half = 1; half < _parts; half *= 2)
        {
            for (int part = 0; part < _parts; part += 2 * half)
            {
                Part(_into, _slots, _slotFloats, _parts, unit, part, slice)
                    .FoldFrom(Part(_into, _slots, _slotFloats, _parts, unit, part + half, slice));
            }
        }
    }
}
