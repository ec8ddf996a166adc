using System;
using System.Globalization;
using System.Linq;
using System.Text;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Cache;

/// <summary>How many pages each rank has room for.</summary>
internal static class CacheCapacity
{
    /// <summary>Finds the ranks' capacities, the same on every rank, before anything is allocated. Every rank calls it.</summary>
    /// <returns>[ranks] page slots; of one rank alone where each stores every key.</returns>
    /// <exception cref="FaultException">A memory does not hold what is wanted of it, or not even one page (71), on every rank.</exception>
    public static int[] Agree(RankContext context, CacheOptions options)
    {
        AvailableMemory[] offers = Gather(context, options);
        long[] slots = [.. offers.Select((_, rank) => SlotsOf(options, offers, rank))];
        for (int rank = 0; rank < slots.Length; rank++)
        {
            if (slots[rank] == 0 && PagesOf(options, rank, slots.Length) > 0)
            {
                throw Fault(
                    $"A page of {PageSpan.Keys} tokens takes {options.PageBytes:N0} bytes in {options.Layers} layers, more than rank {rank} was given for "
                    + "the cache. Give it more memory, or use a smaller storage type.");
            }
        }

        RequireRoom("The cache takes", offers, rank => (double)slots[rank] * options.PageBytes);
        if (Array.Exists(slots, count => count > int.MaxValue) || (long)options.Rows * options.MostPages > Array.MaxLength)
        {
            throw Fault($"A table of {options.Rows} rows × {options.MostPages} pages is too long: use fewer rows, or shorter ones.");
        }

        return options.Replicated ? [(int)slots.Min()] : [.. slots.Select(count => (int)count)];
    }

    /// <summary>Refuses what has no room beside a cache, on every rank. Every rank calls it.</summary>
    /// <param name="context">The rank.</param>
    /// <param name="cache">The cache.</param>
    /// <param name="bytes">What each rank will allocate.</param>
    /// <exception cref="FaultException">A memory has not that much left (71).</exception>
    public static void RequireBeside(RankContext context, ShardedKvCache cache, long bytes)
    {
        // A host gives pages when they are first written: what the cache has not filled yet, it still will take.
        bool isLazy = context.Device.Place == MemoryPlace.Host;
        RequireRoom(
            "Moving the keys of the cache takes, with what the cache will fill,", Gather(context, cache.Options),
            rank => bytes + (isLazy ? (double)cache.Pages.FreeOn(rank) * cache.Options.PageBytes : 0));
    }

    private static AvailableMemory[] Gather(RankContext context, CacheOptions options)
    {
        byte[] mine = Encoding.UTF8.GetBytes(AvailableMemory.Of(context.Device, options).ToString());
        return [.. context.Control.AllGather(mine).Select(bytes => AvailableMemory.Parse(Encoding.UTF8.GetString(bytes)))];
    }

    // Ranks that share a memory take what they want of it together.
    private static void RequireRoom(string taker, AvailableMemory[] offers, Func<int, double> wantedOf)
    {
        foreach (IGrouping<string, int> memory in Enumerable.Range(0, offers.Length).GroupBy(rank => offers[rank].Memory))
        {
            double wanted = memory.Sum(wantedOf);
            long available = memory.Min(rank => offers[rank].Available);
            if (wanted > available)
            {
                throw Fault(string.Create(
                    CultureInfo.InvariantCulture,
                    $"{taker} {wanted:N0} bytes of the memory of {memory.Key}, where {memory.Count()} of {offers.Length} ranks are, and {available:N0} are "
                    + $"available. Use more ranks on more nodes, a smaller {Setting.StorageType}, a shorter context, or fewer layers or rows."));
            }
        }
    }

    private static long SlotsOf(CacheOptions options, AvailableMemory[] offers, int rank)
    {
        AvailableMemory offer = offers[rank];
        long all = PagesOf(options, rank, offers.Length);
        long most = offer.Limit / options.PageBytes;
        if (offer.Fraction is { } fraction)
        {
            AvailableMemory[] sharing = [.. offers.Where(other => other.Memory == offer.Memory)];
            double share = fraction * sharing.Min(other => other.Available) / sharing.Length;
            most = Math.Min(most, (long)(share / options.PageBytes));
        }

        return Math.Min(all, most);
    }

    // At their longest, all rows together.
    private static long PagesOf(CacheOptions options, int rank, int ranks)
    {
        (int index, int count) = options.Replicated ? (0, 1) : (rank, ranks);
        long rounds = Math.DivRem(options.MostPages, LaneTree.Lanes, out int rest);
        int[] lanes = [.. LaneTree.LanesOf(index, count)];
        return options.Rows * lanes.Sum(lane => rounds + (LaneTree.FirstPageOf(lane) < rest ? 1 : 0));
    }

    private static FaultException Fault(string message) => new(FaultCode.OutOfMemory, message) { IsAgreed = true };
}

/// <summary>What one rank has for the pages of a cache, as it tells the others.</summary>
/// <param name="Limit">Bytes that it may use; <see cref="long.MaxValue"/> for no limit.</param>
/// <param name="Fraction">Share of what is available that it may use; null for no such rule.</param>
/// <param name="Available">Bytes that are available to all ranks that share the memory.</param>
/// <param name="Memory">Which memory it is: the machine, and the GPU in it.</param>
internal sealed record AvailableMemory(long Limit, double? Fraction, long Available, string Memory)
{
    private const char Separator = ' ';

    /// <summary>This rank's.</summary>
    public static AvailableMemory Of(IDevice device, CacheOptions options)
    {
        string memory = device is IStreamDevice gpu ? $"{Environment.MachineName}, GPU {gpu.BusAddress}" : Environment.MachineName;
        return new AvailableMemory(options.MemoryBytes ?? long.MaxValue, options.MemoryFraction, device.AvailableBytes, memory);
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
