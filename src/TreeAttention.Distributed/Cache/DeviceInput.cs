using System;

namespace TreeAttention.Distributed;

/// <summary>Numbers of the host on their way to a device: written where the host can, read where the device can; room grows when needed.</summary>
internal sealed class DeviceInput(IDevice device) : IDisposable
{
    private Region _region;
    private HostMemory? _staging;

    /// <summary>Room for so many floats that the host writes.</summary>
    public Span<float> Take(long floats)
    {
        if (_region.Count < floats)
        {
            Dispose();
            _region = device.Allocate(floats * sizeof(float), ElementType.Float32);
            _staging = device.Place == MemoryPlace.Device ? new HostMemory(floats * sizeof(float), ElementType.Float32) : null;
        }

        return (_staging?.Region ?? _region).Slice(0, floats).AsSpan<float>();
    }

    /// <summary>What was written, in the device's memory.</summary>
    public Region Send(long floats)
    {
        Region region = _region.Count == 0 ? Region.Empty : _region.Slice(0, floats);
        if (_staging is not null)
        {
            device.Copy(_staging.Region.Slice(0, floats), region);
        }

        return region;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_region.Count > 0)
        {
            device.Free(_region);
        }

        _staging?.Dispose();
        (_region, _staging) = (Region.Empty, null);
    }
}
