namespace TreeAttention.Distributed;

/// <summary>Loaded shards travel as they are: the bytes of their keys and values. Their limits are known everywhere.</summary>
internal sealed class LoadedShards(ShardMap shards) : TravellingShards
{
    /// <inheritdoc/>
    public override long RoomBytes => shards.LargestElements * shards.PlanOf(0).Type.SizeInBytes();

    /// <inheritdoc/>
    public override long RoomsBytes => BytesBefore(shards.Ranks);

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

    /// <inheritdoc/>
    public override Region RoomIn(Region rooms, int rank) => rooms.Slice(BytesBefore(rank), shards.PlanOf(rank).Bytes);

    /// <inheritdoc/>
    public override KeyValueShard JoinedIn(Region rooms)
    {
        (ShardPlan plan, PageLimits[] limits) = shards.Join();
        return new KeyValueShard(plan, rooms with { Type = plan.Type }, limits);
    }

    /// <inheritdoc/>
    public override void Join(IDevice device, Region rooms)
    {
        // The messages are the joined shard.
    }

    private long BytesBefore(int rank)
    {
        long bytes = 0;
        for (int before = 0; before < rank; before++)
        {
            bytes += shards.PlanOf(before).Bytes;
        }

        return bytes;
    }
}
