using System.Collections.Generic;
using System.Diagnostics;

namespace TreeAttention.Distributed;

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
