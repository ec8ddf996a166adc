using System;

namespace TreeAttention.Devices;

/// <summary>What a device can do at most. One call measures once, so that a benchmark can interleave rounds of its own with rounds of these.</summary>
internal interface IMachineCeilings : IDisposable
{
    /// <summary>Reads a large memory once or more: bytes per second ÷ 10^9.</summary>
    double MeasureRead();

    /// <summary>Copies inside the device's memory, bytes read and bytes written both counted: bytes per second ÷ 10^9; null where the device has no copy of its own.</summary>
    double? MeasureCopy();

    /// <summary>Multiplies and adds in registers: floating-point operations per second ÷ 10^9, two for each multiply-add.</summary>
    double MeasureMultiplyAdd();
}
