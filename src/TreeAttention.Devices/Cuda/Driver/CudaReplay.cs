using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>A CUDA graph of what a device enqueued once.</summary>
internal sealed unsafe class CudaReplay : IReplay
{
    private readonly CudaContext _context;
    private readonly DeviceMemoryPool _pool;
    private readonly MemoryHold _hold;
    private nint _graph; // 0 while it is recorded, and after its end

    /// <summary>Records what <paramref name="work"/> enqueues.</summary>
    internal CudaReplay(CudaContext context, DeviceMemoryPool pool, Action work)
    {
        context.RefuseWhileCapturing("A capture");
        (_context, _pool) = (context, pool);
        _hold = pool.Hold();
        context.Replays.Add(this);
        try
        {
            _graph = Record(work);
        }
        catch
        {
            context.Replays.Remove(this);
            pool.Release(_hold);
            throw;
        }

        pool.EndOfTaking(_hold);
    }

    /// <inheritdoc/>
    public void Launch()
    {
        _context.Enter();
        _context.WhileWaiting?.Invoke(); // what failed before is told as it is
        ObjectDisposedException.ThrowIf(_graph == 0, this);
        _context.Check(CudaDriver.cuGraphLaunch(_graph, _context.Stream), "a launch of a graph");
    }

    /// <summary>Ends the graph, or the recording of it; what was launched goes on.</summary>
    internal void End()
    {
        if (_graph != 0)
        {
            _ = CudaDriver.cuGraphExecDestroy(_graph);
            _graph = 0;
        }
        else
        {
            Discard();
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_context.Replays.Remove(this))
        {
            _context.Drain(); // it may still run
            End();
            _pool.Release(_hold);
        }
    }

    // Thread-local: other ranks of the process may allocate meanwhile.
    private nint Record(Action work)
    {
        CudaFaults.Check(
            CudaDriver.cuStreamBeginCapture_v2(_context.Stream, CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "beginning a capture");
        _context.IsCapturing = true;
        try
        {
            work();
        }
        catch
        {
            Discard();
            throw;
        }

        nint graph;
        _context.IsCapturing = false;
        CudaFaults.Check(CudaDriver.cuStreamEndCapture(_context.Stream, &graph), "ending a capture");
        nint ready;
        CUresult result = CudaDriver.cuGraphInstantiateWithFlags(&ready, graph, 0);
        _ = CudaDriver.cuGraphDestroy(graph);
        CudaFaults.Check(result, "making a graph ready");
        return ready;
    }

    // What was recorded so far, if the capture is not lost already.
    private void Discard()
    {
        nint part;
        if (_context.IsCapturing && CudaDriver.cuStreamEndCapture(_context.Stream, &part) == CUresult.CUDA_SUCCESS)
        {
            _ = CudaDriver.cuGraphDestroy(part);
        }

        _context.IsCapturing = false;
    }
}

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
