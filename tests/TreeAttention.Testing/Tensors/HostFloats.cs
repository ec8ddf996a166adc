using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Testing.Tensors;

/// <summary>Floats in unmanaged memory, as transports want them.</summary>
internal sealed class HostFloats : IDisposable
{
    private readonly HostMemory _memory;

    public HostFloats(int count) => _memory = new HostMemory(count * sizeof(float), ElementType.Float32);

    public HostFloats(params ReadOnlySpan<float> values)
        : this(values.Length) => values.CopyTo(Values);

    public Region Region => _memory.Region;

    public Span<float> Values => _memory.Region.AsSpan<float>();

    public static HostFloats Filled(int count, float value)
    {
        var floats = new HostFloats(count);
        floats.Values.Fill(value);
        return floats;
    }

    public void Dispose() => _memory.Dispose();
}
