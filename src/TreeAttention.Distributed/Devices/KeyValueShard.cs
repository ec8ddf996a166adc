namespace TreeAttention.Distributed;

/// <summary>Keys and values of one shard in a device's memory: a plan, its bytes, and how large its numbers are.</summary>
/// <param name="Plan">Pages, positions, offsets.</param>
/// <param name="Contents">The bytes, of <see cref="ShardPlan.Elements"/> elements.</param>
/// <param name="Limits">[slots, kv_heads] of a loaded shard, which do not change; none of a cache.</param>
public sealed record KeyValueShard(ShardPlan Plan, Region Contents, PageLimits[] Limits)
{
    /// <summary>
    /// [slots, kv_heads] of a cache: <see cref="PageLimits"/> in the device's memory, beside the contents, where
    /// <see cref="IDevice.Append"/> raises them; empty of a loaded shard.
    /// </summary>
    public Region Growing { get; init; } = Region.Empty;

    /// <summary>Limits of a slot and KV head, where the host can read the device's memory.</summary>
    public PageLimits LimitsOf(int slot, int kvHead)
    {
        int index = (slot * Plan.Shape.KvHeads) + kvHead;
        return Growing.Bytes == 0 ? Limits[index] : Growing.AsSpan<PageLimits>()[index];
    }
}
