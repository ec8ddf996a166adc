using System;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Numerics;

/// <summary>Aligned host memory outside the managed heap, zeroed, with a margin behind it that vector loads may touch.</summary>
internal sealed unsafe class HostMemory : IDisposable
{
    /// <summary>Bytes before which every allocation is aligned, and that may be read (never written) past its end.</summary>
    public const int Margin = 64;

    private readonly MemoryAccount? _account;
    private readonly long _bytes;
    private void* _address;

    /// <summary>Allocates <paramref name="bytes"/> zeroed bytes.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public HostMemory(long bytes, ElementType type, MemoryAccount? account = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        try
        {
            _address = NativeMemory.AlignedAlloc((nuint)bytes + Margin, Margin);
        }
        catch (OutOfMemoryException error)
        {
            throw new FaultException(
                FaultCode.OutOfMemory,
                $"{bytes:N0} bytes of host memory could not be allocated. Use more ranks on more nodes, a smaller {Setting.StorageType}, or a shorter context.",
                error);
        }

        NativeMemory.Clear(_address, (nuint)bytes + Margin);
        _bytes = bytes;
        _account = account;
        _account?.Take(bytes);
        Region = new Region((nint)_address, bytes, type, MemoryPlace.Host);
    }

    /// <summary>Frees memory that was never disposed of.</summary>
    ~HostMemory() => Free();

    /// <summary>The memory.</summary>
    public Region Region { get; }

    /// <inheritdoc/>
    public void Dispose()
    {
        Free();
        GC.SuppressFinalize(this);
    }

    private void Free()
    {
        if (_address != null)
        {
            NativeMemory.AlignedFree(_address);
            _address = null;
            _account?.Return(_bytes);
        }
    }
}

/// <summary>Counts the bytes that are allocated now and the most that ever were, where the allocating happens.</summary>
internal sealed class MemoryAccount
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
