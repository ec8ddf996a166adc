using System;
using System.Collections.Generic;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>CUDA events on a device's stream.</summary>
internal sealed unsafe class CudaTimer(CudaContext context) : IStreamTimer
{
    private const uint WithTiming = 0;
    private const uint External = 1; // a node of the graph that is captured: every launch records the event anew

    private readonly List<nint> _events = [];

    /// <inheritdoc/>
    public void Mark(int number)
    {
        context.Enter();
        while (_events.Count <= number)
        {
            nint made;
            CudaFaults.Check(CudaDriver.cuEventCreate(&made, WithTiming), "making an event");
            _events.Add(made);
        }

        CudaFaults.Check(
            CudaDriver.cuEventRecordWithFlags(_events[number], context.Stream, context.IsCapturing ? External : 0), "recording an event");
    }

    /// <inheritdoc/>
    public TimeSpan Between(int first, int second)
    {
        context.Enter();
        float milliseconds;
        CudaFaults.Check(CudaDriver.cuEventElapsedTime(&milliseconds, _events[first], _events[second]), "asking an event for its time");
        return TimeSpan.FromMilliseconds(milliseconds);
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (nint one in _events)
        {
            _ = CudaDriver.cuEventDestroy_v2(one);
        }

        _events.Clear();
    }
}
