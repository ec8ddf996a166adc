using System;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

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
