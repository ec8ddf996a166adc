namespace TreeAttention.Distributed;

/// <summary>A device whose work is enqueued on a stream that a transport can enqueue on as well: then nobody waits between the two.</summary>
public interface IStreamDevice : IStagingDevice
{
    /// <summary>The driver's handle of the stream (a CUstream), valid on threads that have entered the device.</summary>
    nint Stream { get; }

    /// <summary>Makes the device's context the calling thread's: to be called before the driver, or a library over it, is.</summary>
    void Enter();
}
