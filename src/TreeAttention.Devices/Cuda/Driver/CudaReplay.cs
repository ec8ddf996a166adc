using System;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

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
