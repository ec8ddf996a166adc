using System;
using System.Linq;
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

        RequireRoom("The cache takes", offers, options, rank => (double)slots[rank] * options.PageBytes);
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
            "Moving the keys of the cache takes, with what the cache will fill,", Gather(context, cache.Options), cache.Options,
            rank => bytes + (isLazy ? (double)cache.Pages.FreeOn(rank) * cache.Options.PageBytes : 0));
    }

    private static AvailableMemory[] Gather(RankContext context, CacheOptions options) =>
        MemoryRoom.Gather(context, options.MemoryBytes ?? long.MaxValue, options.MemoryFraction);

    private static void RequireRoom(string taker, AvailableMemory[] offers, CacheOptions options, Func<int, double> wantedOf) =>
        MemoryRoom.Require(taker, offers, wantedOf, options.MaxLength, "fewer layers or rows");

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
