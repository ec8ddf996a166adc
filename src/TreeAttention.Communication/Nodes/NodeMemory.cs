using System;
using System.IO;
using System.Linq;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using System.Text;
using System.Threading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Communication.Nodes;

/// <summary>How processes of one machine come to share the memory of <see cref="PeerSlots"/>.</summary>
internal static class NodeMemory
{
    /// <summary>Memory that all ranks of a control plane share; they are on one machine. Every rank calls it.</summary>
    /// <returns>Null on every rank when it cannot be had on some rank.</returns>
    public static IPeerMemory? Share(IControlPlane control, long bytesPerRank)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytesPerRank);
        return Share(
            control.Rank, control.Size, polite: control.Size > Environment.ProcessorCount, bytesPerRank,
            path => Encoding.UTF8.GetString(control.AllGather(Encoding.UTF8.GetBytes(path))[0]),
            mine => control.AllGather(new[] { mine ? (byte)1 : (byte)0 }).All(answer => answer[0] == 1));
    }

    /// <summary>Rank 0 creates a file, all map it, and its name is gone before this returns: a killed job leaves nothing behind.</summary>
    /// <param name="rank">This rank.</param>
    /// <param name="size">Number of ranks.</param>
    /// <param name="polite">There are more ranks than cores.</param>
    /// <param name="bytesPerRank">Bytes of a slot.</param>
    /// <param name="broadcast">Gives every rank the text of rank 0.</param>
    /// <param name="all">Whether it is true on every rank.</param>
    /// <param name="whileWaiting">Called now and then while a peer is awaited; throws when waiting is pointless.</param>
    /// <returns>Null on every rank when it cannot be had on some rank: no room, or containers that share no folder.</returns>
    internal static IPeerMemory? Share(
        int rank, int size, bool polite, long bytesPerRank, Func<string, string> broadcast, Func<bool, bool> all, Action? whileWaiting = null)
    {
        long bytes = PeerSlots.BytesFor(size, bytesPerRank);
        string path = "";
        SharedMapping? mapping = null;
        try
        {
            mapping = rank == 0 ? TryCreate(bytes, out path) : null;
            path = broadcast(path);
            mapping ??= path.Length > 0 ? TryAttach(path, bytes) : null;
            if (!all(mapping != null))
            {
                return null;
            }

            Action unmap = mapping!.Dispose;
            var slots = new PeerSlots(mapping.Address, rank, size, bytesPerRank, polite, whileWaiting, unmap);
            mapping = null;
            return slots;
        }
        finally
        {
            mapping?.Dispose();
            if (rank == 0 && path.Length > 0)
            {
                SharedMapping.Remove(path);
            }
        }
    }

    private static SharedMapping? TryCreate(long bytes, out string path)
    {
        path = "";
        try
        {
            return SharedMapping.Create(bytes, out path);
        }
        catch (IOException)
        {
            path = "";
            return null;
        }
    }

    private static SharedMapping? TryAttach(string path, long bytes)
    {
        try
        {
            return SharedMapping.Attach(path, bytes);
        }
        catch (IOException)
        {
            return null;
        }
    }
}

/// <summary>The layout and the signalling of peer memory over one stretch of memory that all ranks of a node see.</summary>
/// <remarks>
/// First one line per rank with the number of rounds that it has published, then the slots of the even rounds, then those of
/// the odd ones, each slot on a boundary of <see cref="LineBytes"/>. The memory must be zero at the start. A release store
/// publishes, acquire loads await: no system call as long as the peers run. Each rank has an object of its own over the same
/// memory, whether the ranks are threads or processes. The slots' regions are of <see cref="ElementType.Byte"/>.
/// </remarks>
internal sealed unsafe class PeerSlots : IPeerMemory
{
    /// <summary>Two cache lines: the neighbouring line is prefetched with its partner, so a rank owns both.</summary>
    public const int LineBytes = 128;

    // A poll costs some 20-40 ns. With a core for every rank a peer is normally at most microseconds away, and a yield only
    // costs; after a millisecond it has lost its core, and yielding is all that helps.
    private const int PatientPolls = 30_000;
    private const int PolitePolls = 100;
    private const int PollsBetweenChecks = 1 << 12;
    private const int YieldsBetweenChecks = 1 << 8;

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

    /// <summary>The round, from 0 on.</summary>
    public long Round => _round;

    /// <summary>Called after a wait that was long enough to be looked at.</summary>
    public Action? WhenAwaited { get; init; }

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
        bool isLookedAt = false;
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

            // A poll that yields may take a time slice.
            if (polls % (polls >= _pollsBeforeYield ? YieldsBetweenChecks : PollsBetweenChecks) == 0)
            {
                _whileWaiting?.Invoke();
                isLookedAt = true;
            }
        }

        if (isLookedAt)
        {
            WhenAwaited?.Invoke();
        }
    }

    private ref long PublishedBy(int rank) => ref Unsafe.AsRef<long>(_base + ((long)rank * LineBytes));
}
