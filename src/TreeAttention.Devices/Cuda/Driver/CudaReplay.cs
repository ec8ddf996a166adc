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
    private nint _graph;

    /// <summary>Records what <paramref name="work"/> enqueues.</summary>
    internal CudaReplay(CudaContext context, DeviceMemoryPool pool, Action work)
    {
        context.RefuseWhileCapturing("A capture");
        (_context, _pool) = (context, pool);
        _hold = pool.Hold();
        try
        {
            _graph = Record(work);
        }
        catch
        {
            pool.Release(_hold);
            throw;
        }

        pool.EndOfTaking(_hold);
    }

    /// <inheritdoc/>
    public void Launch()
    {
        ObjectDisposedException.ThrowIf(_graph == 0, this);
        _context.Enter();
        _context.Check(CudaDriver.cuGraphLaunch(_graph, _context.Stream), "a launch of a graph");
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_graph != 0)
        {
            _context.Drain(); // it may still run
            _ = CudaDriver.cuGraphExecDestroy(_graph);
            _pool.Release(_hold);
            _graph = 0;
        }
    }

    // Thread-local: other ranks of the process may allocate meanwhile.
    private nint Record(Action work)
    {
        CudaFaults.Check(
            CudaDriver.cuStreamBeginCapture_v2(_context.Stream, CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "beginning a capture");
        nint graph = 0;
        CUresult ended;
        _context.IsCapturing = true;
        try
        {
            work();
        }
        finally
        {
            _context.IsCapturing = false;
            ended = CudaDriver.cuStreamEndCapture(_context.Stream, &graph);
        }

        CudaFaults.Check(ended, "ending a capture");
        nint ready;
        CUresult result = CudaDriver.cuGraphInstantiateWithFlags(&ready, graph, 0);
        _ = CudaDriver.cuGraphDestroy(graph);
        CudaFaults.Check(result, "making a graph ready");
        return ready;
    }
}
