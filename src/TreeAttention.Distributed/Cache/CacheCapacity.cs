using System;
using System.Buffers.Binary;
using System.Linq;

namespace TreeAttention.Distributed;

/// <summary>How many pages each rank has room for.</summary>
internal static class CacheCapacity
{
    /// <summary>Finds the ranks' capacities, the same on every rank. Every rank calls it.</summary>
    /// <returns>[ranks] page slots.</returns>
    /// <exception cref="FaultException">A rank's memory does not hold one page (71).</exception>
    public static int[] Agree(RankContext context, CacheOptions options)
    {
        if (options.Replicated)
        {
            return [SlotsOf(options, 0, 1)];
        }

        byte[] mine = new byte[sizeof(int)];
        BinaryPrimitives.WriteInt32LittleEndian(mine, SlotsOf(options, context.Transport.Rank, context.Transport.Size));
        int[] slots = [.. context.Control.AllGather(mine).Select(bytes => BinaryPrimitives.ReadInt32LittleEndian(bytes))];
        for (int rank = 0; rank < slots.Length; rank++)
        {
            if (slots[rank] == 0 && OwnPages(options, rank, slots.Length) > 0)
            {
                throw new FaultException(
                    FaultCode.OutOfMemory,
                    $"A page of {PageSpan.Keys} tokens takes {options.PageBytes:N0} bytes in {options.Layers} layers, more than rank {rank} was given for "
                    + "the cache. Give it more memory, or use a smaller storage type.")
                { IsAgreed = true };
            }
        }

        return slots;
    }

    private static int SlotsOf(CacheOptions options, int rank, int ranks)
    {
        long all = (long)options.Rows * OwnPages(options, rank, ranks);
        return checked((int)Math.Min(all, options.MemoryBytes is { } bytes ? bytes / options.PageBytes : all));
    }

    private static int OwnPages(CacheOptions options, int rank, int ranks) =>
        Enumerable.Range(0, options.MostPages).Count(page => LaneTree.OwnerOf(page, ranks) == rank);
}
