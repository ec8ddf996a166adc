using System;
using TreeAttention.Devices.Cpu.Kernels;
using TreeAttention.Devices.Cpu.Memory;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cpu.Scheduling;

/// <summary>Attention over a whole shard as units of work: a row tile over a range of pages each. Ranges of one tile are merged in ascending order.</summary>
internal sealed unsafe class AttendWork(WorkerPool pool, TileWorkers workers, MemoryAccount account) : IWork, IDisposable
{
    // Enough units that a thread which was held up does not hold up the rest; fewer where ranges would become short.
    private const int UnitsPerThread = 8;
    private const int PagesPerRange = 8;

    private readonly Scratch _ranges = new(account);
    private readonly MergeWork _merge = new();
    private AttentionProblem _problem = null!;
    private QueryBlock _queries = null!;
    private KeyValueShard _shard = null!;
    private PartialAttention _into = null!;
    private TileGrid _grid;
    private int _rangesPerTile;
    private TileKind _kind;

    /// <summary>Runs the whole call.</summary>
    internal void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        (_problem, _queries, _shard, _into) = (problem, queries, shard, into);
        _kind = workers.KindFor(problem.Shape, shard.Plan.Type, isCanonical: false);
        _grid = workers.GridFor(_kind, problem.Shape, queries.Count);
        if (_grid.Count == 0)
        {
            return;
        }

        workers.Reserve(_kind, _grid.RowsPerTile);
        _rangesPerTile = RangesFor(shard.Plan.PagesPerBatch);
        long slot = PartialAttention.FloatsFor(_grid.RowsPerTile, _into.ValueDim);
        float* slots = _ranges.Floats((_rangesPerTile - 1) * _grid.Count * slot);
        pool.Run(this, _grid.Count * _rangesPerTile);
        if (_rangesPerTile > 1)
        {
            _merge.Prepare(_grid, into, slots, slot, _rangesPerTile);
            pool.Run(_merge, _grid.Count);
        }
    }

    void IWork.Run(int unit, int worker)
    {
        (int number, int range) = Math.DivRem(unit, _rangesPerTile);
        RowSlice slice = _grid[number];
        int pages = _shard.Plan.PagesPerBatch;
        int first = (int)((long)pages * range / _rangesPerTile);
        int end = (int)((long)pages * (range + 1) / _rangesPerTile);
        StateRows into = range == 0
            ? StateRows.Of(_into, slice.FirstOfPartial, slice.Count)
            : MergeWork.Slot(_ranges.Floats(0), PartialAttention.FloatsFor(_grid.RowsPerTile, _into.ValueDim), _rangesPerTile, number, range, slice.Count, _into.ValueDim);

        TileWorker tile = workers[_kind, worker];
        tile.Load(_problem, _queries, _shard.Plan, slice.Batch, slice.KvHead, slice.First, slice.Count);
        tile.Attend(_shard, (slice.Batch * pages) + first, (slice.Batch * pages) + end, into);
    }

    public void Dispose() => _ranges.Dispose();

    private int RangesFor(int pages)
    {
        int units = pool.Threads == 1 ? 1 : UnitsPerThread * pool.Threads;
        int wanted = (units + _grid.Count - 1) / _grid.Count;
        int most = _grid.Count < pool.Threads ? pages : pages / PagesPerRange;
        return Math.Clamp(wanted, 1, Math.Max(1, most));
    }
}

/// <summary>Merges what the ranges of each tile gave, in ascending order: a unit is a tile.</summary>
internal sealed unsafe class MergeWork : IWork
{
    private TileGrid _grid;
    private PartialAttention _into = null!;
    private float* _slots;
    private long _slotFloats;
    private int _ranges;

    /// <summary>Range <paramref name="range"/> ≥ 1 of a tile; range 0 lies in the partial itself.</summary>
    internal static StateRows Slot(float* slots, long slotFloats, int ranges, int tile, int range, int rows, int valueDim) =>
        StateRows.At(slots + ((((long)tile * (ranges - 1)) + range - 1) * slotFloats), rows, valueDim);

    /// <summary>Takes the call.</summary>
    internal void Prepare(TileGrid grid, PartialAttention into, float* slots, long slotFloats, int ranges)
    {
        (_grid, _into, _slotFloats, _ranges) = (grid, into, slotFloats, ranges);
        _slots = slots;
    }

    void IWork.Run(int unit, int worker)
    {
        RowSlice slice = _grid[unit];
        var into = StateRows.Of(_into, slice.FirstOfPartial, slice.Count);
        for (int range = 1; range < _ranges; range++)
        {
            into.FoldFrom(Slot(_slots, _slotFloats, _ranges, unit, range, slice.Count, _into.ValueDim));
        }
    }
}

/// <summary>How the query rows of a call are cut into tiles: batch rows × KV heads × tiles of neighbouring rows.</summary>
/// <param name="Batch">Batch rows.</param>
/// <param name="KvHeads">KV heads.</param>
/// <param name="RowsPerHead">Query rows of a KV head: group × queries.</param>
/// <param name="RowsPerTile">Rows of each tile but the last.</param>
/// <param name="TilesPerHead">Tiles of a KV head.</param>
internal readonly record struct TileGrid(int Batch, int KvHeads, int RowsPerHead, int RowsPerTile, int TilesPerHead)
{
    // Transposed queries and outputs of a tile stay in the second-level cache beside a block of keys and values.
    private const int TileBytes = 256 << 10;

    private const int MostPanels = 4;

    /// <summary>Tiles of the call.</summary>
    internal int Count => Batch * KvHeads * TilesPerHead;

    /// <summary>Cuts a call into tiles.</summary>
    /// <param name="shape">The call.</param>
    /// <param name="queries">Queries of each head that are worked on.</param>
    /// <param name="panel">Rows of a full panel; 0 for the kernel that takes all rows of a head at once.</param>
    internal static TileGrid For(AttentionShape shape, int queries, int panel)
    {
        int rows = checked(shape.GroupSize * queries);
        if (rows == 0)
        {
            return new TileGrid(shape.Batch, shape.KvHeads, 0, 0, 0);
        }

        int most = rows;
        if (panel > 0)
        {
            int panels = TileBytes / (sizeof(float) * (shape.HeadDim + shape.ValueDim) * panel);
            most = Math.Clamp(panels, 1, MostPanels) * panel;
        }

        int tiles = (rows + most - 1) / most;
        int step = Math.Max(1, panel / 3);
        int each = (((rows + tiles - 1) / tiles) + step - 1) / step * step;
        return new TileGrid(shape.Batch, shape.KvHeads, rows, each, (rows + each - 1) / each);
    }

    /// <summary>The tile with this number. Numbers ascend as work falls: under a causal mask the last rows see most keys.</summary>
    internal RowSlice this[int number]
    {
        get
        {
            int heads = Batch * KvHeads;
            int first = (TilesPerHead - 1 - (number / heads)) * RowsPerTile;
            int head = number % heads;
            return new RowSlice(
                head / KvHeads, head % KvHeads, first, Math.Min(RowsPerTile, RowsPerHead - first), (head * RowsPerHead) + first);
        }
    }
}

/// <summary>One tile: which rows of which batch row and KV head, and where they stand in a partial.</summary>
/// <param name="Batch">The batch row.</param>
/// <param name="KvHead">The KV head.</param>
/// <param name="First">First row, counted inside the KV head.</param>
/// <param name="Count">Rows.</param>
/// <param name="FirstOfPartial">First row, counted over the whole partial.</param>
internal readonly record struct RowSlice(int Batch, int KvHead, int First, int Count, int FirstOfPartial);
