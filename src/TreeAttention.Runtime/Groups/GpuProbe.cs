using System;
using System.Text;
using TreeAttention.Devices;

namespace TreeAttention.Runtime;

/// <summary>What a rank found that may compute on a GPU or not: GPUs that are ready, what is in their way, or no trace of one.</summary>
/// <param name="Platform">The ready GPUs; of another rank's probe none, though it may be ready.</param>
/// <param name="Obstacle">Why there is none, where users would expect one.</param>
internal sealed record GpuProbe(CudaPlatform? Platform, string? Obstacle)
{
    private const byte Ready = 1;

    /// <summary>A machine without any NVIDIA GPU.</summary>
    internal static GpuProbe NoTrace { get; } = new(null, null);

    /// <summary>The rank can compute on GPUs.</summary>
    internal bool IsReady { get; private init; } = Platform is not null;

    /// <summary>What the other ranks have to know.</summary>
    internal byte[] ToBytes() => IsReady ? [Ready] : Obstacle is null ? [] : [0, .. Encoding.UTF8.GetBytes(Obstacle)];

    /// <summary>Another rank's.</summary>
    internal static GpuProbe FromBytes(byte[] bytes) =>
        bytes.Length == 0 ? NoTrace
        : bytes[0] == Ready ? NoTrace with { IsReady = true }
        : new GpuProbe(null, Encoding.UTF8.GetString(bytes.AsSpan(1)));
}
