using System;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>A second stream of a GPU: what is enqueued on it follows the device's work of before, and runs beside that of after, until it is joined.</summary>
internal sealed unsafe class NcclSideStream : IDisposable
{
    private const uint NonBlocking = 1; // ordered against no other stream
    private const uint WithoutTiming = 2;

    private readonly IStreamDevice _device;
    private nint _stream;
    private nint _event;

    internal NcclSideStream(IStreamDevice device)
    {
        _device = device;
        device.EnterStream();
        nint stream;
        Check(CudaDriver.cuStreamCreate(&stream, NonBlocking), "making a stream");
        _stream = stream;
        nint made;
        Check(CudaDriver.cuEventCreate(&made, WithoutTiming), "making an event");
        _event = made;
    }

    /// <summary>Lets the second stream follow all work that the device has enqueued.</summary>
    /// <returns>The second stream.</returns>
    internal nint Fork()
    {
        Follow(_stream, _device.EnterStream());
        return _stream;
    }

    /// <summary>Lets the device's work from now on follow all that the second stream has.</summary>
    internal void Join() => Follow(_device.EnterStream(), _stream);

    public void Dispose()
    {
        if (_stream != 0)
        {
            _device.EnterStream();
            _ = CudaDriver.cuStreamDestroy_v2(_stream);
            _ = CudaDriver.cuEventDestroy_v2(_event);
            (_stream, _event) = (0, 0);
        }
    }

    private void Follow(nint later, nint earlier)
    {
        Check(CudaDriver.cuEventRecord(_event, earlier), "recording an event");
        Check(CudaDriver.cuStreamWaitEvent(later, _event, 0), "waiting for an event");
    }

    private static void Check(CUresult result, string action)
    {
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw new FaultException(FaultCode.DeviceFault, $"The GPU failed in {action}: {result} ({(uint)result}). Start again.");
        }
    }
}
