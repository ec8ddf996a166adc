namespace TreeAttention.Devices;

/// <summary>How much a measurement of a GPU's ceilings does.</summary>
/// <param name="Bytes">Memory that is read; on a device far more than its caches hold.</param>
/// <param name="Repeats">How often it is read, or copied, in one measurement.</param>
/// <param name="Steps">Steps of multiplications.</param>
internal sealed record CeilingWork(long Bytes, int Repeats, long Steps)
{
    /// <summary>Some milliseconds of a data centre's GPU.</summary>
    internal static CeilingWork OfDevice(long bytes) => new(bytes, 8, 10_000);

    /// <summary>A token: emulated time says nothing, and every thread of a grid is work for the CPU.</summary>
    internal static CeilingWork OfEmulation { get; } = new(1 << 17, 1, 2);
}
