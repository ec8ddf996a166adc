using System.Globalization;
using System.Threading;

namespace TreeAttention;

/// <summary>What one rank handed to its transport, counted where it happens: payload bytes, messages, collectives.</summary>
/// <remarks>
/// A send counts its bytes and one message; a collective counts the bytes of the rank's own contribution and one collective.
/// Control bytes (agreement, heartbeats) are kept apart.
/// </remarks>
public sealed class Traffic
{
    private long _bytesSent;
    private long _messages;
    private long _collectives;
    private long _controlBytes;

    /// <summary>Payload bytes.</summary>
    public long BytesSent => Interlocked.Read(ref _bytesSent);

    /// <summary>Point-to-point messages sent.</summary>
    public long Messages => Interlocked.Read(ref _messages);

    /// <summary>Collective operations taken part in.</summary>
    public long Collectives => Interlocked.Read(ref _collectives);

    /// <summary>Bytes of the control plane.</summary>
    public long ControlBytes => Interlocked.Read(ref _controlBytes);

    /// <summary>Counts one message of <paramref name="bytes"/>.</summary>
    internal void CountMessage(long bytes)
    {
        Interlocked.Add(ref _bytesSent, bytes);
        Interlocked.Increment(ref _messages);
    }

    /// <summary>Counts one collective to which this rank contributes <paramref name="bytes"/>.</summary>
    internal void CountCollective(long bytes)
    {
        Interlocked.Add(ref _bytesSent, bytes);
        Interlocked.Increment(ref _collectives);
    }

    /// <summary>Counts payload that is neither a message nor a collective: a state written into shared memory.</summary>
    internal void CountPayload(long bytes) => Interlocked.Add(ref _bytesSent, bytes);

    /// <summary>Counts bytes of the control plane.</summary>
    internal void CountControl(long bytes) => Interlocked.Add(ref _controlBytes, bytes);

    /// <summary>The counts but the control bytes.</summary>
    public TrafficCount Count => new(BytesSent, Messages, Collectives);

    /// <summary>Counts once more what was counted before: a captured step is done again.</summary>
    internal void CountAgain(TrafficCount sent)
    {
        Interlocked.Add(ref _bytesSent, sent.Bytes);
        Interlocked.Add(ref _messages, sent.Messages);
        Interlocked.Add(ref _collectives, sent.Collectives);
    }

    /// <summary>What was sent: <c>16,640 bytes, 1 messages, 0 collectives; 88 control bytes</c>.</summary>
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Count}; {ControlBytes:N0} control bytes");

    /// <summary>Sets every count but the control bytes to zero.</summary>
    public void Reset()
    {
        Interlocked.Exchange(ref _bytesSent, 0);
        Interlocked.Exchange(ref _messages, 0);
        Interlocked.Exchange(ref _collectives, 0);
    }
}

/// <summary>What was sent over some time.</summary>
/// <param name="Bytes">Payload bytes.</param>
/// <param name="Messages">Point-to-point messages.</param>
/// <param name="Collectives">Collective operations.</param>
public readonly record struct TrafficCount(long Bytes, long Messages, long Collectives)
{
    /// <summary>What was sent: <c>16,640 bytes, 1 messages, 0 collectives</c>.</summary>
    public override string ToString() =>
        string.Create(CultureInfo.InvariantCulture, $"{Bytes:N0} bytes, {Messages:N0} messages, {Collectives:N0} collectives");

    /// <summary>What was sent between two counts.</summary>
    public static TrafficCount operator -(TrafficCount later, TrafficCount earlier) =>
        new(later.Bytes - earlier.Bytes, later.Messages - earlier.Messages, later.Collectives - earlier.Collectives);

    /// <summary>What was sent between two counts.</summary>
    public static TrafficCount Subtract(TrafficCount left, TrafficCount right) => left - right;
}
