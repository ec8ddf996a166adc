using System.Threading;

namespace TreeAttention.Distributed;

/// <summary>Counts the bytes that are allocated now and the most that ever were, where the allocating happens.</summary>
public sealed class MemoryAccount
{
    private long _bytes;
    private long _peak;

    /// <summary>Bytes allocated now.</summary>
    public long Bytes => Interlocked.Read(ref _bytes);

    /// <summary>Most bytes that were allocated at one time.</summary>
    public long PeakBytes => Interlocked.Read(ref _peak);

    /// <summary>Counts an allocation.</summary>
    public void Take(long bytes)
    {
        long now = Interlocked.Add(ref _bytes, bytes);
        long peak = Interlocked.Read(ref _peak);
        while (now > peak)
        {
            long seen = Interlocked.CompareExchange(ref _peak, now, peak);
            if (seen == peak)
            {
                return;
            }

            peak = seen;
        }
    }

    /// <summary>Counts a release.</summary>
    public void Return(long bytes) => Interlocked.Add(ref _bytes, -bytes);
}
