using System;

namespace TreeAttention.Distributed;

/// <summary>Recorded work of a device (a CUDA graph): enqueued whole, by one call of the driver.</summary>
/// <remarks>
/// It does again what was enqueued, over the same memory: what lies there by then is what counts. Memory that it works on is
/// given to nobody else as long as it lives, even if it is freed.
/// </remarks>
public interface IReplay : IDisposable
{
    /// <summary>Enqueues the work.</summary>
    /// <exception cref="FaultException">The device failed (202).</exception>
    void Launch();
}
