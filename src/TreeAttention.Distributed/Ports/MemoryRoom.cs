using System;
using System.Globalization;
using System.Linq;
using System.Text;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Distributed.Ports;

/// <summary>Finds out, before anything is allocated, whether the memories of the ranks hold what the ranks want of them.</summary>
/// <remarks>
/// A system promises memory that it does not have, and kills the process when it is written. So ranks that share a memory (a machine, a
/// GPU) add up what they want, and all refuse together.
/// </remarks>
internal static class MemoryRoom
{
    /// <summary>What each rank has. Every rank calls it.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="limit">Bytes that this rank may use.</param>
    /// <param name="fraction">Share of what is available that it may use; null for no such rule.</param>
    /// <returns>[ranks]</returns>
    public static AvailableMemory[] Gather(RankContext context, long limit = long.MaxValue, double? fraction = null)
    {
        byte[] mine = Encoding.UTF8.GetBytes(AvailableMemory.Of(context.Device, limit, fraction).ToString());
        return [.. context.Control.AllGather(mine).Select(bytes => AvailableMemory.Parse(Encoding.UTF8.GetString(bytes)))];
    }

    /// <summary>Refuses what does not fit, on every rank.</summary>
    /// <param name="taker">What takes it, with its verb: <c>The cache takes</c>.</param>
    /// <param name="offers">[ranks] what each rank has.</param>
    /// <param name="wantedOf">Bytes that a rank wants.</param>
    /// <param name="length">Tokens that this many bytes are for; the message says how many would fit.</param>
    /// <param name="wayOut">What else would need less.</param>
    /// <exception cref="FaultException">A memory has not that much (71).</exception>
    public static void Require(string taker, AvailableMemory[] offers, Func<int, double> wantedOf, long length, string wayOut)
    {
        foreach (IGrouping<string, int> memory in Enumerable.Range(0, offers.Length).GroupBy(rank => offers[rank].Memory))
        {
            double wanted = memory.Sum(wantedOf);
            long available = memory.Min(rank => offers[rank].Available);
            if (wanted > available)
            {
                throw new FaultException(FaultCode.OutOfMemory, string.Create(
                    CultureInfo.InvariantCulture,
                    $"{taker} {wanted:N0} bytes of the memory of {memory.Key}, where {memory.Count()} of {offers.Length} ranks are, and {available:N0} are "
                    + $"available: enough for a context of about {Math.Floor(length * (available / wanted)):N0} of {length:N0} tokens. Use more ranks on more nodes, a smaller "
                    + $"{Setting.StorageType}, a shorter context, or {wayOut}."))
                { IsAgreed = true };
            }
        }
    }
}

/// <summary>What one rank has for keys and values, as it tells the others.</summary>
/// <param name="Limit">Bytes that it may use; <see cref="long.MaxValue"/> for no limit.</param>
/// <param name="Fraction">Share of what is available that it may use; null for no such rule.</param>
/// <param name="Available">Bytes that are available to all ranks that share the memory.</param>
/// <param name="Memory">Which memory it is: the machine, and the GPU in it.</param>
internal sealed record AvailableMemory(long Limit, double? Fraction, long Available, string Memory)
{
    private const char Separator = ' ';

    /// <summary>This rank's.</summary>
    public static AvailableMemory Of(IDevice device, long limit, double? fraction)
    {
        string memory = device is IStreamDevice gpu ? $"{Environment.MachineName}, GPU {gpu.BusAddress}" : Environment.MachineName;
        return new AvailableMemory(limit, fraction, device.AvailableBytes, memory);
    }

    /// <summary>What another rank told.</summary>
    public static AvailableMemory Parse(string text)
    {
        string[] parts = text.Split(Separator, 4);
        return new AvailableMemory(
            long.Parse(parts[0], CultureInfo.InvariantCulture), parts[1] == "-" ? null : double.Parse(parts[1], CultureInfo.InvariantCulture),
            long.Parse(parts[2], CultureInfo.InvariantCulture), parts[3]);
    }

    /// <summary>As it is told.</summary>
    public override string ToString() =>
        string.Create(CultureInfo.InvariantCulture, $"{Limit} {(Fraction is { } share ? share.ToString("R", CultureInfo.InvariantCulture) : "-")} {Available} {Memory}");
}
