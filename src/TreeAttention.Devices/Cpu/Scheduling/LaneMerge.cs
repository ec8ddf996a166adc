using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
