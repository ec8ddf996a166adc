namespace TreeAttention.Distributed;

/// <summary>The shards of all ranks as they travel: the message of each, and what its receiver attends to.</summary>
/// <remarks>Every rank knows the lengths and offsets of all messages, so none of them is sent. Made once; travelling allocates nothing.</remarks>
internal abstract class TravellingShards
{
    /// <summary>Bytes of memory in which any rank's message has room.</summary>
    public abstract long RoomBytes { get; }

    /// <summary>Bytes of memory in which the messages of all ranks have room.</summary>
    public abstract long RoomsBytes { get; }

    /// <summary>Refuses what the memories of the ranks have no room for, on every rank, before it is allocated. Every rank calls it.</summary>
    /// <remarks>Of loaded shards, which are written by then, allocating itself finds it out.</remarks>
    /// <param name="context">The rank.</param>
    /// <param name="bytes">What each rank will allocate.</param>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public virtual void RequireMemory(RankContext context, long bytes)
    {
    }

    /// <summary>A rank's shard as it lies in the room that its message arrives in.</summary>
    public abstract KeyValueShard ShardIn(Region room, int rank);

    /// <summary>A rank's message in a room: no bytes where it has no keys.</summary>
    public abstract Region MessageIn(Region room, int rank);

    /// <summary>Takes over what the shards hold now, and gives the message of the own one.</summary>
    /// <param name="device">Copies.</param>
    /// <param name="own">This rank's shard.</param>
    /// <param name="room">Where the message is made, unless the shard is one already.</param>
    public abstract Region Pack(IDevice device, KeyValueShard own, Region room);

    /// <summary>A rank's room among those of all ranks.</summary>
    public abstract Region RoomIn(Region rooms, int rank);

    /// <summary>The keys of all ranks as one shard, in the order of their positions; to be made once.</summary>
    public abstract KeyValueShard JoinedIn(Region rooms);

    /// <summary>Makes the joined shard whole, when all messages have come.</summary>
    public abstract void Join(IDevice device, Region rooms);
}
