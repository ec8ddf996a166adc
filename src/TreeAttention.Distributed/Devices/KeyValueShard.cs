namespace TreeAttention.Distributed;

/// <summary>Keys and values of one shard in a device's memory: a plan, its bytes, and how large its numbers are.</summary>
/// <param name="Plan">Pages, positions, offsets.</param>
/// <param name="Contents">The bytes, of <see cref="ShardPlan.Elements"/> elements.</param>
/// <param name="Limits">[slots, kv_heads]: of the pages of a loaded shard, of all pages that a cache has room for.</param>
public sealed record KeyValueShard(ShardPlan Plan, Region Contents, PageLimits[] Limits);
