using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
