using System;

namespace TreeAttention.Distributed;

/// <summary>Where the time of a step goes: parts of it, one after the other, each of them computing or communicating.</summary>
internal abstract class StepClock : IDisposable
{
    /// <summary>The clock of a device: its own, where it has one in the order of its stream.</summary>
    internal static StepClock For(IDevice device) => device is IStreamDevice stream ? new StreamClock(stream.CreateTimer()) : new HostClock();

    /// <summary>Forgets the run before.</summary>
    internal abstract void Restart();

    /// <summary>Begins a part.</summary>
    internal abstract void Begin();

    /// <summary>Ends the part that was begun.</summary>
    internal abstract void End(bool isCompute);

    /// <summary>The times of the run; its work is done.</summary>
    internal abstract StepTimes Read();

    /// <inheritdoc/>
    public abstract void Dispose();
}
