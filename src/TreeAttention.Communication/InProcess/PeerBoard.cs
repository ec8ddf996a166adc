using System;
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.InProcess;

/// <summary>The memory behind the <see cref="PeerSlots"/> of in-process ranks: the last rank that disposes of its view frees it.</summary>
internal sealed class PeerBoard : IDisposable
{
    private readonly HostMemory _memory;
    private readonly int _ranks;
    private readonly long _bytesPerRank;
    private int _users;

    public PeerBoard(int ranks, long bytesPerRank)
    {
        _memory = new HostMemory(PeerSlots.BytesFor(ranks, bytesPerRank), ElementType.Byte);
        (_ranks, _bytesPerRank, _users) = (ranks, bytesPerRank, ranks);
    }

    /// <summary>One rank's view.</summary>
    public PeerSlots ViewOf(int rank, GroupMembers members, WaitWatch watch)
    {
        bool seenLost = false;
        long round = -1;
        PeerSlots view = null!;

        // A rank may publish its last round and leave while this one still polls; so only the second look counts, after
        // the awaited rounds were read once more.
        void Check()
        {
            if (members.IsLost(GroupMembers.Any))
            {
                if (seenLost)
                {
                    members.ThrowLost(rank, GroupMembers.Any);
                }

                seenLost = true;
            }

            if (view.Round != round)
            {
                round = view.Round;
                watch.Begin();
            }

            if (watch.Look() is { } late)
            {
                throw members.Fault.End(late);
            }
        }

        bool polite = _ranks > Environment.ProcessorCount;
        view = new PeerSlots(_memory.Region.Address, rank, _ranks, _bytesPerRank, polite, Check, Dispose) { WhenAwaited = watch.End };
        return view;
    }

    /// <summary>A rank uses the memory no longer.</summary>
    public void Dispose()
    {
        if (Interlocked.Decrement(ref _users) == 0)
        {
            _memory.Dispose();
        }
    }
}

/// <summary>What the in-process transport does with host regions of any length: copy and combine.</summary>
internal static unsafe class HostRegions
{
    private const int Block = 1024; // elements combined at a time: they stay in the first-level cache

    /// <summary>Copies equally long regions.</summary>
    public static void Copy(Region from, Region to) =>
        Buffer.MemoryCopy((void*)from.Address, (void*)to.Address, to.Bytes, from.Bytes);

    /// <summary>Combines the elements [first, first + count) of all regions, in their order, and writes the result to all.</summary>
    public static void Combine(ReadOnlySpan<Region> regions, long first, long count, ReduceOperation operation)
    {
        Span<float> total = stackalloc float[Block];
        for (long done = 0; done < count; done += Block)
        {
            int length = (int)Math.Min(Block, count - done);
            Span<float> whole = total[..length];
            Floats(regions[0], first + done, length).CopyTo(whole);
            foreach (Region region in regions[1..])
            {
                Accumulate(whole, Floats(region, first + done, length), operation);
            }

            foreach (Region region in regions)
            {
                whole.CopyTo(Floats(region, first + done, length));
            }
        }
    }

    /// <summary>A few elements of a region of any length.</summary>
    public static Span<float> Floats(Region region, long first, int count) =>
        MemoryMarshal.CreateSpan(ref Unsafe.AsRef<float>((float*)region.Address + first), count);

    // Without this, vectors of the machine's width are compiled slow at first, and short runs see nothing else.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Accumulate(Span<float> into, ReadOnlySpan<float> from, ReduceOperation operation)
    {
        int width = Vector<float>.Count;
        int i = 0;
        for (; i + width <= into.Length; i += width)
        {
            var left = new Vector<float>(into[i..]);
            var right = new Vector<float>(from[i..]);
            (operation == ReduceOperation.Sum ? left + right : Vector.Max(left, right)).CopyTo(into[i..]);
        }

        for (; i < into.Length; i++)
        {
            into[i] = operation == ReduceOperation.Sum ? into[i] + from[i] : MathF.Max(into[i], from[i]);
        }
    }
}
