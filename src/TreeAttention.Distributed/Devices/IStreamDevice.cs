using System;

namespace TreeAttention.Distributed;

/// <summary>A GPU whose stream a transport may enqueue on: its operations then take their place in the order of the device's work, and nobody waits.</summary>
public interface IStreamDevice : IStagingDevice
{
    /// <summary>What tells the GPU from the others of its machine: its PCI bus address.</summary>
    string BusAddress { get; }

    /// <summary>Called again and again while enqueued work is waited for, and once after it; it throws when what a transport enqueued failed or cannot end. Null: nobody is asked.</summary>
    Action? WhileWaiting { get; set; }

    /// <summary>Makes the GPU the calling thread's.</summary>
    /// <returns>The driver's handle of the stream of all the device's work.</returns>
    nint EnterStream();
}
