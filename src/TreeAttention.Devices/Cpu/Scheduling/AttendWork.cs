using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
        _kind = workers.KindFor(problem.Shape, shard.Plan.Type);
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
