namespace TreeAttention.Distributed;

/// <summary>The shards of all ranks as they travel: the message of each, and what its receiver attends to.</summary>
/// <remarks>Every rank knows the lengths and offsets of all messages, so none of them is sent. Made once; travelling allocates nothing.</remarks>
internal abstract class TravellingShards
{
    /// <summary>Bytes of memory in which any rank's message has room.</summary>
    public abstract long RoomBytes { get; }

    /// <summary>A rank's shard as it lies in the room that its message arrives in.</summary>
    public abstract KeyValueShard ShardIn(Region room, int rank);

    /// <summary>A rank's message in a room: no bytes where it has no keys.</summary>
    public abstract Region MessageIn(Region room, int rank);

    /// <summary>Takes over what the shards hold now, and gives the message of the own one.</summary>
    /// <param name="device">Copies.</param>
    /// <param name="own">This rank's shard.</param>
    /// <param name="room">Where the message is made, unless the shard is one already.</param>
    public abstract Region Pack(IDevice device, KeyValueShard own, Region room);
}
