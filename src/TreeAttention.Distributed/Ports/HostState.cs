using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Distributed.Ports;

/// <summary>Room in host memory for a device's state: what reads a result takes it from here.</summary>
/// <param name="rows">Rows of the state.</param>
/// <param name="valueDim">Elements of an output row.</param>
internal sealed class HostState(int rows, int valueDim) : IDisposable
{
    private readonly HostMemory _memory = new(PartialAttention.FloatsFor(rows, valueDim) * sizeof(float), ElementType.Float32);
    private PartialAttention? _state;

    /// <summary>Copies a state of this size, behind the device's enqueued work, and waits for it. Allocates nothing after the first time.</summary>
    /// <returns>The copy; it is valid until the next one, or until this is disposed of.</returns>
    internal PartialAttention Take(IDevice device, PartialAttention state)
    {
        _state ??= new PartialAttention(_memory.Region, rows, valueDim);
        device.Copy(state.Region, _memory.Region);
        device.Synchronize();
        return _state;
    }

    /// <inheritdoc/>
    public void Dispose() => _memory.Dispose();
}
