using System;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>Puts a device's work between that of a caller's stream, by events: nobody waits on the host.</summary>
internal sealed unsafe class CudaOrder(CudaContext context) : IDisposable
{
    private const uint WithoutTiming = 2;

    private nint _theirs;
    private nint _ours;

    /// <summary>What is enqueued from now on waits for what the stream holds now.</summary>
    internal void Follow(nint stream) => Join(stream, context.Stream, ref _theirs);

    /// <summary>What the stream gets from now on waits for what is enqueued now.</summary>
    internal void Precede(nint stream) => Join(context.Stream, stream, ref _ours);

    public void Dispose()
    {
        foreach (nint one in (nint[])[_theirs, _ours])
        {
            if (one != 0)
            {
                _ = CudaDriver.cuEventDestroy_v2(one);
            }
        }
    }

    // A wait is for the record that was made last before it: the event serves again and again.
    private void Join(nint first, nint second, ref nint marker)
    {
        context.RefuseWhileCapturing("Work between that of another stream");
        if (marker == 0)
        {
            nint made;
            CudaFaults.Check(CudaDriver.cuEventCreate(&made, WithoutTiming), "making an event");
            marker = made;
        }

        context.Check(CudaDriver.cuEventRecord(marker, first), "recording an event");
        context.Check(CudaDriver.cuStreamWaitEvent(second, marker, 0), "waiting for an event of another stream");
    }
}
