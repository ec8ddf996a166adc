using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The layout and the signalling of peer memory over one stretch of memory that all ranks of a node see.</summary>
/// <remarks>
/// First one line per rank with the number of rounds that it has published, then the slots of the even rounds, then those of
/// the odd ones, each slot on a boundary of <see cref="LineBytes"/>. The memory must be zero at the start. A release store
/// publishes, acquire loads await: no system call as long as the peers run. Each rank has an object of its own over the same
/// memory, whether the ranks are threads or processes. The slots' regions are of <see cref="ElementType.Byte"/>.
/// </remarks>
public sealed unsafe class PeerSlots : IPeerMemory
{
    /// <summary>Two cache lines: the neighbouring line is prefetched with its partner, so a rank owns both.</summary>
    public const int LineBytes = 128;

    // A poll costs some 20-40 ns. With a core for every rank a peer is normally at most microseconds away, and a yield only
    // costs; after a millisecond it has lost its core, and yielding is all that helps.
    private const int PatientPolls = 30_000;
    private const int PolitePolls = 100;
    private const int PollsBetweenChecks = 1 << 12;

    private readonly byte* _base;
    private readonly long _bytesPerRank;
    private readonly long _stride;
    private readonly int _pollsBeforeYield;
    private readonly Action? _whileWaiting;
    private Action? _dispose;
    private long _round;

    /// <summary>One rank's view of memory that all ranks see.</summary>
    /// <param name="address">Start of <see cref="BytesFor"/> bytes, zero before the first round; on a boundary of a cache line.</param>
    /// <param name="rank">The calling rank.</param>
    /// <param name="size">Ranks that share the memory.</param>
    /// <param name="bytesPerRank">Bytes of a slot.</param>
    /// <param name="polite">There are more ranks than cores: give the core away after a short spin.</param>
    /// <param name="whileWaiting">Called now and then while a peer is awaited; throws when waiting is pointless. Null: waits for ever.</param>
    /// <param name="dispose">Called once on <see cref="Dispose"/>: unmaps or frees the memory.</param>
    public PeerSlots(
        nint address, int rank, int size, long bytesPerRank, bool polite, Action? whileWaiting = null, Action? dispose = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytesPerRank);
        ArgumentOutOfRangeException.ThrowIfNegative(rank);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(rank, size);
        _base = (byte*)address;
        Rank = rank;
        Size = size;
        _bytesPerRank = bytesPerRank;
        _stride = StrideOf(bytesPerRank);
        _pollsBeforeYield = polite ? PolitePolls : PatientPolls;
        _whileWaiting = whileWaiting;
        _dispose = dispose;
    }

    /// <summary>The calling rank.</summary>
    public int Rank { get; }

    /// <summary>Ranks that share the memory.</summary>
    public int Size { get; }

    /// <inheritdoc/>
    public Region Mine => SlotOf(Rank);

    /// <summary>Bytes of memory that <paramref name="size"/> ranks with slots of <paramref name="bytesPerRank"/> need.</summary>
    public static long BytesFor(int size, long bytesPerRank) => checked(size * (LineBytes + (2 * StrideOf(bytesPerRank))));

    /// <inheritdoc/>
    public Region SlotOf(int rank)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)rank, (uint)Size);
        long slot = ((_round & 1) * Size) + rank;
        byte* address = _base + ((long)Size * LineBytes) + (slot * _stride);
        return new Region((nint)address, _bytesPerRank, ElementType.Byte, MemoryPlace.Host);
    }

    /// <inheritdoc/>
    public void Publish() => Volatile.Write(ref PublishedBy(Rank), _round + 1);

    /// <inheritdoc/>
    /// <remarks>Begins with the neighbour after this rank, so that not all ranks poll the same line at once.</remarks>
    public void AwaitAll()
    {
        for (int step = 1; step < Size; step++)
        {
            int peer = Rank + step < Size ? Rank + step : Rank + step - Size;
            ref long published = ref PublishedBy(peer);
            if (Volatile.Read(ref published) <= _round)
            {
                Await(ref published);
            }
        }
    }

    /// <inheritdoc/>
    public void NextRound() => _round++;

    /// <inheritdoc/>
    public void Dispose() => Interlocked.Exchange(ref _dispose, null)?.Invoke();

    private static long StrideOf(long bytes) => (bytes + LineBytes - 1) & -LineBytes;

    private void Await(ref long published)
    {
        long polls = 0;
        while (Volatile.Read(ref published) <= _round)
        {
            polls++;
            if (polls >= _pollsBeforeYield)
            {
                Thread.Yield();
            }
            else if (X86Base.IsSupported)
            {
                X86Base.Pause();
            }
            else
            {
                Thread.SpinWait(1);
            }

            if (polls % PollsBetweenChecks == 0)
            {
                _whileWaiting?.Invoke();
            }
        }
    }

    private ref long PublishedBy(int rank) => ref Unsafe.AsRef<long>(_base + ((long)rank * LineBytes));
}
