using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>One worker's attention over pages for one row tile at a time: sends each row of each page to the kernel that is exact enough.</summary>
internal abstract unsafe class TileWorker : IDisposable
{
    /// <summary>Makes room for tiles of so many rows, so that later calls allocate nothing on the managed heap.</summary>
    internal abstract void Reserve(int rows);

    /// <summary>Takes a tile of query rows, for pages of shards with the scales of <paramref name="plan"/>.</summary>
    internal abstract void Load(AttentionProblem problem, QueryBlock queries, ShardPlan plan, int batch, int kvHead, int first, int count);

    /// <summary>Attention of the tile over pages <paramref name="first"/> to <paramref name="end"/> - 1 of the plan, from scratch.</summary>
    /// <param name="shard">The shard.</param>
    /// <param name="first">Index of the first page in the plan.</param>
    /// <param name="end">Index after the last page.</param>
    /// <param name="into">The tile's rows; what they held is replaced.</param>
    internal abstract void Attend(KeyValueShard shard, int first, int end, StateRows into);

    /// <inheritdoc/>
    public abstract void Dispose();
}
