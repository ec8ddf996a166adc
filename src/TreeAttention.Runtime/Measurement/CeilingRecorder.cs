using System;

namespace TreeAttention.Runtime;

/// <summary>placeholder</summary>
public sealed class CeilingRecorder(AttentionGroup group) : IDisposable
{
    private readonly double[] _x = [group.Size];

    /// <summary>x</summary>
    public void Run() => _x[0]++;

    /// <summary>x</summary>
    public CeilingMeasurement Summarise() => new(_x, _x);

    /// <inheritdoc/>
    public void Dispose()
    {
    }
}
