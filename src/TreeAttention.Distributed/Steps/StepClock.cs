using System;
using System.Collections.Generic;
using System.Diagnostics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Steps;

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

/// <summary>The clock of the host, for devices whose work is done when a call returns.</summary>
internal sealed class HostClock : StepClock
{
    private long _compute;
    private long _communication;
    private long _since;

    internal override void Restart() => (_compute, _communication) = (0, 0);

    internal override void Begin() => _since = Stopwatch.GetTimestamp();

    internal override void End(bool isCompute)
    {
        long ticks = Stopwatch.GetTimestamp() - _since;
        _compute += isCompute ? ticks : 0;
        _communication += isCompute ? 0 : ticks;
    }

    internal override StepTimes Read() => new(_compute, _communication);

    public override void Dispose()
    {
    }
}

/// <summary>The clock of a device's stream: marks between the parts, read when the step is over.</summary>
/// <remarks>
/// A part ends on the stream when its last work does, so waiting for other ranks counts as communicating though no host waits.
/// A replay sets the same marks again: the parts of the run that was captured are those of all its replays.
/// </remarks>
internal sealed class StreamClock(IStreamTimer timer) : StepClock
{
    private readonly List<bool> _parts = []; // part n lies between marks n and n + 1; true: computing

    internal override void Restart() => _parts.Clear();

    internal override void Begin()
    {
        if (_parts.Count == 0)
        {
            timer.Mark(0);
        }
    }

    internal override void End(bool isCompute)
    {
        _parts.Add(isCompute);
        timer.Mark(_parts.Count);
    }

    internal override StepTimes Read()
    {
        double compute = 0;
        double communication = 0;
        for (int part = 0; part < _parts.Count; part++)
        {
            double seconds = timer.Between(part, part + 1).TotalSeconds;
            compute += _parts[part] ? seconds : 0;
            communication += _parts[part] ? 0 : seconds;
        }

        return new StepTimes((long)(compute * Stopwatch.Frequency), (long)(communication * Stopwatch.Frequency));
    }

    public override void Dispose() => timer.Dispose();
}
