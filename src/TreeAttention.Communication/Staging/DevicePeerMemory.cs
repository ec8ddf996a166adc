using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Staging;

/// <summary>Slots in the memory of GPUs: states pass between them directly, in stream order; the host only tells that it has enqueued.</summary>
/// <remarks>
/// The host's slots, small ones, carry the tickets at first and then the rounds: a rank waits until all others have enqueued
/// their part of a round, never until it is done. Behind the tickets each rank tells which round it has awaited last: a
/// window goes only when all others have, or are not to be expected any more.
/// </remarks>
internal sealed unsafe class DevicePeerMemory : IPeerMemory
{
    private const int RoundBytes = sizeof(long);
    private static readonly TimeSpan _patience = TimeSpan.FromSeconds(1);

    private readonly IPeerMemory _host;
    private readonly IPeerWindow _window;
    private readonly int _rank;
    private readonly int _ranks;
    private readonly nint[][] _awaited; // [set][rank] the round that the rank has awaited last on the set
    private int _round;

    private DevicePeerMemory(IPeerMemory host, IPeerWindow window, int rank, int ranks, nint[][] awaited) =>
        (_host, _window, _rank, _ranks, _awaited) = (host, window, rank, ranks, awaited);

    /// <inheritdoc/>
    public Region Mine => SlotOf(_rank);

    /// <summary>Shares memory among the GPUs of a transport's ranks, or through the host where they cannot.</summary>
    /// <param name="transport">Moves host memory among the ranks.</param>
    /// <param name="device">This rank's GPU.</param>
    /// <param name="bytesPerRank">Bytes of each rank's slot.</param>
    /// <param name="warn">Told on rank 0 why it is the host.</param>
    /// <returns>Null where the ranks share no memory at all.</returns>
    internal static IPeerMemory? Share(ITransport transport, IStreamDevice device, long bytesPerRank, Action<string>? warn)
    {
        IPeerWindow window = device.CreatePeerWindow(transport.Rank, transport.Size, bytesPerRank);
        IPeerMemory? host = transport.SharePeerMemory(window.Ticket.Length + RoundBytes);
        if (host is null)
        {
            window.Dispose();
            return null;
        }

        nint[] even = RoundsIn(host, transport.Size, window.Ticket.Length);
        string? refused = window.Open(Exchange(host, transport, window.Ticket.Span));
        nint[] odd = RoundsIn(host, transport.Size, window.Ticket.Length);
        string? reason = Exchange(host, transport, Encoding.UTF8.GetBytes(refused ?? ""))
            .Select(bytes => Encoding.UTF8.GetString(bytes).TrimEnd('\0')).FirstOrDefault(text => text.Length > 0);
        if (reason is null)
        {
            return new DevicePeerMemory(host, window, transport.Rank, transport.Size, [even, odd]);
        }

        window.Dispose();
        host.Dispose();
        if (transport.Rank == 0)
        {
            warn?.Invoke($"one-shot: processes cannot share GPU memory ({reason}); states go through the host's. {Setting.ReductionButterfly} or {Setting.TransportNccl} may be faster.");
        }

        return transport.SharePeerMemory(bytesPerRank);
    }

    /// <inheritdoc/>
    public Region SlotOf(int rank) => _window.SlotOf(_round & 1, rank);

    /// <inheritdoc/>
    public void Publish()
    {
        _window.Send(_round & 1);
        _host.Publish();
    }

    /// <inheritdoc/>
    public void AwaitAll()
    {
        _host.AwaitAll();
        for (int step = 1; step < _ranks; step++)
        {
            _window.Await(_round & 1, (_rank + step) % _ranks);
        }

        Volatile.Write(ref *(long*)_awaited[_round & 1][_rank], _round + 1);
    }

    /// <inheritdoc/>
    public void NextRound()
    {
        _host.NextRound();
        _round++;
    }

    /// <inheritdoc/>
    /// <remarks>A peer that is lost awaits nothing; the window stays then, and goes with its device.</remarks>
    public void Dispose()
    {
        if (SpinWait.SpinUntil(HaveAllAwaited, _patience))
        {
            _window.Dispose();
        }

        _host.Dispose();
    }

    private static nint[] RoundsIn(IPeerMemory host, int ranks, int offset) =>
        [.. Enumerable.Range(0, ranks).Select(rank => host.SlotOf(rank).Address + offset)];

    private bool HaveAllAwaited()
    {
        int last = _round - 1;
        return last < 0 || Array.TrueForAll(_awaited[last & 1], address => Volatile.Read(ref *(long*)address) > last);
    }

    // One round of the host's slots; what is shorter than a slot ends in zeros.
    private static List<byte[]> Exchange(IPeerMemory host, ITransport transport, ReadOnlySpan<byte> mine)
    {
        Span<byte> slot = host.Mine.AsSpan<byte>()[..^RoundBytes];
        slot.Clear();
        mine[..Math.Min(mine.Length, slot.Length)].CopyTo(slot);
        host.Publish();
        host.AwaitAll();
        List<byte[]> all = [.. Enumerable.Range(0, transport.Size).Select(rank => host.SlotOf(rank).AsSpan<byte>()[..^RoundBytes].ToArray())];
        host.NextRound();
        return all;
    }
}
