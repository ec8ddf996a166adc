using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda;

/// <summary>A window in the memory of a GPU: peers of this process reach it by address, those of other processes by CUDA IPC; events order both.</summary>
/// <remarks>
/// Each set of slots has an event of its own: a rank records it again only after all others have awaited it, so nobody awaits
/// the wrong round. Kernels never spin: whoever waits, waits by the driver's events.
/// </remarks>
internal sealed unsafe class CudaPeerWindow : IPeerWindow
{
    private const int Sets = 2;
    private const long Line = 256;
    private const long OwnPages = 2 << 20; // IPC shares whole pages of the GPU: nothing else lies in them
    private const uint BetweenProcesses = 2 | 4; // interprocess events keep no time

    private static readonly Guid _process = Guid.NewGuid();

    private readonly CudaContext _context;
    private readonly DeviceMemoryPool _pool;
    private readonly int _rank;
    private readonly long _bytes;
    private readonly long _stride;
    private readonly nint _memory;
    private readonly nint[] _events = new nint[Sets];
    private readonly PeerEnd?[] _peers;

    internal CudaPeerWindow(CudaContext context, DeviceMemoryPool pool, int rank, int ranks, long bytesPerRank)
    {
        (_context, _pool, _rank, _bytes) = (context, pool, rank, bytesPerRank);
        _stride = (bytesPerRank + Line - 1) / Line * Line;
        _peers = new PeerEnd?[ranks];
        _memory = pool.Take(Math.Max(OwnPages, Sets * ranks * _stride));
        for (int set = 0; set < Sets; set++)
        {
            nint made;
            CudaFaults.Check(CudaDriver.cuEventCreate(&made, BetweenProcesses), "making an event");
            _events[set] = made;
        }

        PeerTicket ticket = MakeTicket();
        Ticket = MemoryMarshal.AsBytes(new ReadOnlySpan<PeerTicket>(in ticket)).ToArray();
    }

    /// <inheritdoc/>
    public ReadOnlyMemory<byte> Ticket { get; }

    /// <inheritdoc/>
    public string? Open(IReadOnlyList<byte[]> tickets)
    {
        _context.Enter();
        for (int peer = 0; peer < _peers.Length; peer++)
        {
            if (peer == _rank)
            {
                continue;
            }

            PeerTicket ticket = MemoryMarshal.Read<PeerTicket>(tickets[peer]);
            CUresult refused = CUresult.CUDA_SUCCESS;
            _peers[peer] = ticket.Process == _process ? PeerEnd.Inside(ticket, _context.Handle) : PeerEnd.Outside(ticket, out refused);
            if (_peers[peer] is null)
            {
                return CudaFaults.NameOf(refused);
            }
        }

        return null;
    }

    /// <inheritdoc/>
    public Region SlotOf(int set, int rank) => new(_memory + Offset(set, rank), _bytes, ElementType.Byte, MemoryPlace.Device);

    /// <inheritdoc/>
    public void Send(int set)
    {
        _context.Enter();
        nint offset = Offset(set, _rank);
        foreach (PeerEnd? peer in _peers)
        {
            if (peer is not null && _bytes > 0)
            {
                _context.Check(
                    CudaDriver.cuMemcpyAsync((ulong)(peer.Memory + offset), (ulong)(_memory + offset), (nuint)_bytes, _context.Stream), "a copy to a peer");
            }
        }

        _context.Check(CudaDriver.cuEventRecord(_events[set], _context.Stream), "recording an event");
    }

    /// <inheritdoc/>
    public void Await(int set, int peer)
    {
        _context.Enter();
        _context.Check(CudaDriver.cuStreamWaitEvent(_context.Stream, _peers[peer]!.Events[set], 0), "waiting for a peer's event");
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _context.Drain(); // what was sent has left, what was awaited has come
        foreach (PeerEnd? peer in _peers)
        {
            peer?.Dispose();
        }

        foreach (nint one in _events)
        {
            _ = CudaDriver.cuEventDestroy_v2(one);
        }

        _pool.Give(_memory);
    }

    private nint Offset(int set, int rank) => (nint)(((set * _peers.Length) + rank) * _stride);

    // Peers of this process need no handles: that there are none is told, and matters where another process asks for them.
    private PeerTicket MakeTicket()
    {
        var ticket = new PeerTicket { Process = _process, Context = _context.Handle, Memory = _memory };
        (ticket.Events[0], ticket.Events[1]) = (_events[0], _events[1]);
        ticket.Refused = CudaDriver.cuIpcGetMemHandle(&ticket.MemoryHandle, (ulong)_memory);
        if (ticket.Refused == CUresult.CUDA_SUCCESS)
        {
            ticket.Refused = CudaDriver.cuIpcGetEventHandle(&ticket.FirstEvent, _events[0]);
        }

        if (ticket.Refused == CUresult.CUDA_SUCCESS)
        {
            ticket.Refused = CudaDriver.cuIpcGetEventHandle(&ticket.SecondEvent, _events[1]);
        }

        return ticket;
    }
}

/// <summary>A peer's window as this process reaches it: where it lies, and the events that say what has arrived from the peer.</summary>
internal sealed unsafe class PeerEnd : IDisposable
{
    private const uint LazyPeerAccess = 1; // the only flag there is

    private readonly bool _isMapped;
    private ulong _memory;

    private PeerEnd(ulong memory, nint firstEvent, nint secondEvent, bool isMapped) =>
        (_memory, Events, _isMapped) = (memory, [firstEvent, secondEvent], isMapped);

    /// <summary>Where the window begins.</summary>
    internal nint Memory => (nint)_memory;

    /// <summary>[set] recorded by the peer after it has sent.</summary>
    internal nint[] Events { get; }

    /// <summary>Reaches a window of this process.</summary>
    internal static PeerEnd Inside(PeerTicket ticket, nint ownContext)
    {
        if (ticket.Context != ownContext)
        {
            // Where GPUs cannot reach each other, or do already, this fails and copies find their way all the same.
            _ = CudaDriver.cuCtxEnablePeerAccess(ticket.Context, 0);
        }

        return new PeerEnd((ulong)ticket.Memory, (nint)ticket.Events[0], (nint)ticket.Events[1], false);
    }

    /// <summary>Reaches a window of another process.</summary>
    /// <param name="ticket">The window's.</param>
    /// <param name="refused">What the driver says where it cannot.</param>
    /// <returns>Null where it cannot.</returns>
    internal static PeerEnd? Outside(PeerTicket ticket, out CUresult refused)
    {
        refused = ticket.Refused;
        ulong memory;
        if (refused != CUresult.CUDA_SUCCESS
            || (refused = CudaDriver.cuIpcOpenMemHandle_v2(&memory, ticket.MemoryHandle, LazyPeerAccess)) != CUresult.CUDA_SUCCESS)
        {
            return null;
        }

        nint first = 0;
        nint second = 0;
        if ((refused = CudaDriver.cuIpcOpenEventHandle(&first, ticket.FirstEvent)) == CUresult.CUDA_SUCCESS
            && (refused = CudaDriver.cuIpcOpenEventHandle(&second, ticket.SecondEvent)) == CUresult.CUDA_SUCCESS)
        {
            return new PeerEnd(memory, first, second, true);
        }

        new PeerEnd(memory, first, second, true).Dispose();
        return null;
    }

    public void Dispose()
    {
        if (!_isMapped || _memory == 0)
        {
            return;
        }

        _ = CudaDriver.cuIpcCloseMemHandle(_memory);
        _memory = 0;
        foreach (nint one in Events)
        {
            if (one != 0)
            {
                _ = CudaDriver.cuEventDestroy_v2(one);
            }
        }
    }
}

/// <summary>How a window is reached: by its addresses in the process that made it, by IPC handles in others.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct PeerTicket
{
    /// <summary>Drawn by the process that made the window: process ids repeat over containers.</summary>
    internal Guid Process;

    internal nint Context;
    internal nint Memory;
    internal fixed long Events[2];
    internal CUipcMemHandle MemoryHandle;
    internal CUipcEventHandle FirstEvent;
    internal CUipcEventHandle SecondEvent;

    /// <summary>Why there are no IPC handles; 0 when there are.</summary>
    internal CUresult Refused;
}
