namespace TreeAttention.Distributed;

/// <summary>Loaded shards travel as they are: the bytes of their keys and values. Their limits are known everywhere.</summary>
internal sealed class LoadedShards(ShardMap shards) : TravellingShards
{
    /// <inheritdoc/>
    public override long RoomBytes => shards.LargestElements * shards.PlanOf(0).Type.SizeInBytes();

    /// <inheritdoc/>
    public override KeyValueShard ShardIn(Region room, int rank) => new(shards.PlanOf(rank), MessageIn(room, rank), shards.LimitsOf(rank));

    /// <inheritdoc/>
    public override Region MessageIn(Region room, int rank)
    {
        ShardPlan plan = shards.PlanOf(rank);
        return room.Slice(0, plan.Bytes) with { Type = plan.Type };
    }

    /// <inheritdoc/>
    public override Region Pack(IDevice device, KeyValueShard own, Region room) => own.Contents;
}
