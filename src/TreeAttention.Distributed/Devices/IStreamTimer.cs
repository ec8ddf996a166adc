using System;

namespace TreeAttention.Distributed;

/// <summary>Marks in the order of a device's stream, and the time between them, taken by the device: nobody waits at a mark.</summary>
public interface IStreamTimer : IDisposable
{
    /// <summary>Enqueues a mark; inside a capture, one that every replay sets again.</summary>
    /// <param name="number">Which: 0, 1, 2, ... A mark set again forgets when it was set before.</param>
    void Mark(int number);

    /// <summary>Time between two marks that have passed.</summary>
    TimeSpan Between(int first, int second);
}
