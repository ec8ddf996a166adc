using System;
using System.Globalization;

namespace TreeAttention.Distributed;

/// <summary>What one rank has for the pages of a cache, as it tells the others.</summary>
/// <param name="Limit">Bytes that it may use; <see cref="long.MaxValue"/> for no limit.</param>
/// <param name="Fraction">Share of what is available that it may use; null for no such rule.</param>
/// <param name="Available">Bytes that are available to all ranks that share the memory.</param>
/// <param name="Memory">Which memory it is: the machine, and the GPU in it.</param>
internal sealed record MemoryOffer(long Limit, double? Fraction, long Available, string Memory)
{
    private const char Separator = ' ';

    /// <summary>This rank's.</summary>
    public static MemoryOffer Of(IDevice device, CacheOptions options)
    {
        string memory = device is IStreamDevice gpu ? $"{Environment.MachineName}, GPU {gpu.BusAddress}" : Environment.MachineName;
        return new MemoryOffer(options.MemoryBytes ?? long.MaxValue, options.MemoryFraction, device.AvailableBytes, memory);
    }

    /// <summary>What another rank told.</summary>
    public static MemoryOffer Parse(string text)
    {
        string[] parts = text.Split(Separator, 4);
        return new MemoryOffer(
            long.Parse(parts[0], CultureInfo.InvariantCulture), parts[1] == "-" ? null : double.Parse(parts[1], CultureInfo.InvariantCulture),
            long.Parse(parts[2], CultureInfo.InvariantCulture), parts[3]);
    }

    /// <summary>As it is told.</summary>
    public override string ToString() =>
        string.Create(CultureInfo.InvariantCulture, $"{Limit} {(Fraction is { } share ? share.ToString("R", CultureInfo.InvariantCulture) : "-")} {Available} {Memory}");
}
