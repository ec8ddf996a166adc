using System;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The memory behind <see cref="InProcessPeerMemory"/>: two sets of slots, and how many rounds each rank has published.</summary>
internal sealed class PeerBoard : IDisposable
{
    private const long SlotAlignment = 128; // two ranks never write one cache line, nor two that are fetched together
    private const int CounterStride = 32;

    private readonly HostMemory _memory;
    private readonly int[] _published;
    private readonly long _slotBytes;
    private readonly long _stride;
    private readonly int _ranks;
    private int _users;

    public PeerBoard(int ranks, long slotBytes)
    {
        _ranks = ranks;
        _users = ranks;
        _slotBytes = slotBytes;
        _stride = (slotBytes + SlotAlignment - 1) / SlotAlignment * SlotAlignment;
        _memory = new HostMemory(2 * ranks * _stride, ElementType.Byte);
        _published = new int[ranks * CounterStride];
    }

    /// <summary>The slot of a rank in a round.</summary>
    public Region Slot(int rank, int round) =>
        _memory.Region.Slice((((round & 1) * _ranks) + rank) * _stride, _slotBytes);

    /// <summary>Rounds that a rank has published.</summary>
    public ref int Published(int rank) => ref _published[rank * CounterStride];

    /// <summary>A rank uses the memory no longer; the last one frees it.</summary>
    public void Dispose()
    {
        if (Interlocked.Decrement(ref _users) == 0)
        {
            _memory.Dispose();
        }
    }
}
