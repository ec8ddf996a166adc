namespace TreeAttention.Distributed;

/// <summary>A device whose memory the host must not touch: it gives page-locked memory, through which transports stage what they move.</summary>
public interface IStagingDevice : IDevice
{
    /// <summary>Allocates page-locked host memory; its contents are anything. It counts in no account of the device.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    Region AllocatePinned(long bytes, ElementType type);

    /// <summary>Frees memory that <see cref="AllocatePinned"/> gave, after the enqueued work.</summary>
    void FreePinned(Region region);
}
