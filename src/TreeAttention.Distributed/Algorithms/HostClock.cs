using System.Diagnostics;

namespace TreeAttention.Distributed;

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
