namespace TreeAttention.Distributed;

/// <summary>What was sent over some time.</summary>
/// <param name="Bytes">Payload bytes.</param>
/// <param name="Messages">Point-to-point messages.</param>
/// <param name="Collectives">Collective operations.</param>
public readonly record struct TrafficCount(long Bytes, long Messages, long Collectives)
{
    /// <summary>What was sent between two counts.</summary>
    public static TrafficCount operator -(TrafficCount later, TrafficCount earlier) =>
        new(later.Bytes - earlier.Bytes, later.Messages - earlier.Messages, later.Collectives - earlier.Collectives);

    /// <summary>What was sent between two counts.</summary>
    public static TrafficCount Subtract(TrafficCount left, TrafficCount right) => left - right;
}
