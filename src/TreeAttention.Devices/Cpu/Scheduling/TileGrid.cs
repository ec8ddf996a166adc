using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
