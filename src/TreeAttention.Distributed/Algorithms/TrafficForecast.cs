namespace TreeAttention.Distributed;

/// <summary>What the busiest rank hands to its transport in one step.</summary>
/// <param name="Bytes">Payload bytes: the most of any rank.</param>
/// <param name="Messages">Point-to-point messages: the most of any rank.</param>
/// <param name="Collectives">Collectives that every rank takes part in.</param>
public readonly record struct TrafficForecast(long Bytes, long Messages, long Collectives);
