using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Distributed.Steps;

/// <summary>What every rank knows about every rank's shard: its plan, and how large its numbers are.</summary>
internal sealed class ShardMap
{
    // Control planes carry small messages; limits of very long contexts travel in pieces of this many bytes.
    private const int PieceBytes = 1 << 16;

    private readonly ShardPlan[] _plans;
    private readonly PageLimits[][] _limits;
    private readonly Func<TravellingShards>? _travel;

    /// <summary>Plans the shards of all ranks.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="layout">Which keys each rank owns.</param>
    /// <param name="ranks">Ranks that share the keys.</param>
    /// <param name="type">Storage type of keys and values.</param>
    /// <param name="valuesInKeys">Values are the first value_dim elements of the keys.</param>
    /// <param name="scales">Scales of storage that has some; 1 when null.</param>
    /// <param name="present">The keys that there are; all when null.</param>
    /// <param name="isReproducible">Pages count from the first key of each sequence, in the lanes layout, whatever lies beside it.</param>
    /// <exception cref="ShapeMismatchException">The layout does not fit the key length or the ranks, or the scales do not fit.</exception>
    public ShardMap(
        AttentionShape shape, ShardLayout layout, int ranks, ElementType type, bool valuesInKeys, KeyValueScales? scales = null,
        PresentTokens? present = null, bool isReproducible = false)
    {
        Shape = shape;
        Layout = layout;
        Ranks = ranks;
        _plans = new ShardPlan[ranks];
        _limits = new PageLimits[ranks][];
        for (int rank = 0; rank < ranks; rank++)
        {
            _plans[rank] = isReproducible && present is not null && (present.HasStarts || !present.AreAllKeys)
                ? OfLanes(rank, present, type, valuesInKeys, scales)
                : new ShardPlan(shape, layout.PagesOf(rank, ranks, shape.KeyLength), type, valuesInKeys, scales) { Present = present };
            _limits[rank] = new PageLimits[_plans[rank].Pages.Count * shape.KvHeads];
            Array.Fill(_limits[rank], new PageLimits(float.NaN, float.NaN));
        }
    }

    /// <summary>The map of a growing cache, which knows of the other ranks how large their values are, and no more.</summary>
    /// <param name="plan">This rank's pages; they grow in place.</param>
    /// <param name="ranks">Ranks that share the keys.</param>
    /// <param name="largest">[1] limits of all ranks together; they grow in place.</param>
    /// <param name="travel">Makes the shards as they travel.</param>
    internal ShardMap(ShardPlan plan, int ranks, PageLimits[] largest, Func<TravellingShards> travel)
    {
        (Shape, Layout, Ranks, _travel) = (plan.Shape, ShardLayout.Lanes, ranks, travel);
        _plans = [.. Enumerable.Repeat(plan, ranks)];
        _limits = [.. Enumerable.Repeat(largest, ranks)];
    }

    /// <summary>The shards are those of a cache: keys and limits change from step to step.</summary>
    internal bool IsGrowing => _travel is not null;

    /// <summary>Sizes of the call.</summary>
    public AttentionShape Shape { get; }

    /// <summary>Which keys each rank owns.</summary>
    public ShardLayout Layout { get; }

    /// <summary>Ranks that share the keys.</summary>
    public int Ranks { get; }

    /// <summary>Elements of the largest shard.</summary>
    public long LargestElements => _plans.Max(plan => plan.Elements);

    /// <summary>Pages, positions and offsets of a rank's shard.</summary>
    public ShardPlan PlanOf(int rank) => _plans[rank];

    /// <summary>[pages, kv_heads] of a rank; NaN, the careful answer, until <see cref="ShareLimits"/> told. The array stays the same.</summary>
    public PageLimits[] LimitsOf(int rank) => _limits[rank];

    /// <summary>Gathers every rank's limits on every rank, through the control plane. Every rank calls it.</summary>
    /// <param name="control">The control plane of the ranks.</param>
    /// <param name="mine">[pages, kv_heads] of this rank.</param>
    /// <exception cref="ShapeMismatchException"><paramref name="mine"/> is not of the length of this rank's plan.</exception>
    public void ShareLimits(IControlPlane control, PageLimits[] mine)
    {
        PageLimits[] own = _limits[control.Rank];
        if (mine.Length != own.Length || control.Size != Ranks)
        {
            throw new ShapeMismatchException(
                $"Rank {control.Rank} of {control.Size} gave {mine.Length} page limits, but the shard map is of {Ranks} ranks and has "
                + $"{own.Length} for this one: one for each page and KV head of the rank's plan.");
        }

        mine.CopyTo(own, 0);
        int longest = _limits.Max(limits => MemoryMarshal.AsBytes(limits.AsSpan()).Length);
        for (int first = 0; first < longest; first += PieceBytes)
        {
            IReadOnlyList<byte[]> pieces = control.AllGather(Piece(own, first).ToArray());
            for (int rank = 0; rank < Ranks; rank++)
            {
                pieces[rank].CopyTo(Piece(_limits[rank], first));
            }
        }
    }

    /// <summary>The shards as they travel.</summary>
    internal TravellingShards Travel() => _travel is null ? new LoadedShards(this) : _travel();

    /// <summary>One plan over the contents of all ranks, one after the other: pages in the order of their positions, and their limits as known now.</summary>
    internal (ShardPlan Plan, PageLimits[] Limits) Join()
    {
        (int Rank, int Page)[] pages = [.. _plans
            .SelectMany((plan, rank) => Enumerable.Range(0, plan.PagesPerBatch).Select(page => (Rank: rank, Page: page)))
            .OrderBy(page => _plans[page.Rank].Pages[page.Page].Span.FirstPosition)];
        ShardPlan any = _plans[0];
        var whole = new ShardPlan(Shape, any.Type, any.ValuesInKeys, _plans.Sum(plan => plan.Elements), pages.Length, any.Scales);
        whole.Grow(pages.Length);
        var limits = new PageLimits[Shape.Batch * pages.Length * Shape.KvHeads];
        for (int batch = 0; batch < Shape.Batch; batch++)
        {
            for (int i = 0; i < pages.Length; i++)
            {
                (int rank, int page) = pages[i];
                ShardPlan plan = _plans[rank];
                long first = _plans.Take(rank).Sum(before => before.Elements);
                KeyPage entry = plan.Pages[(batch * plan.PagesPerBatch) + page];
                int slot = (batch * pages.Length) + i;
                whole.Fill(i, entry with { KeyOffset = first + entry.KeyOffset, ValueOffset = first + entry.ValueOffset, Slot = slot });
                _limits[rank].AsSpan(entry.Slot * Shape.KvHeads, Shape.KvHeads).CopyTo(limits.AsSpan(slot * Shape.KvHeads));
            }
        }

        return (whole, limits);
    }

    private ShardPlan OfLanes(int rank, PresentTokens present, ElementType type, bool valuesInKeys, KeyValueScales? scales)
    {
        int[] firstPages = new int[LaneTree.Lanes + 1];
        PageSpan[][] rows = LanePages.Of(present.Keys, rank, Ranks, firstPages);
        return new ShardPlan(Shape, rows, firstPages[^1], type, valuesInKeys, scales) { Present = present, FirstPages = firstPages };
    }

    private static Span<byte> Piece(PageLimits[] limits, int first)
    {
        Span<byte> bytes = MemoryMarshal.AsBytes(limits.AsSpan());
        int start = Math.Min(first, bytes.Length);
        return bytes.Slice(start, Math.Min(PieceBytes, bytes.Length - start));
    }
}

/// <summary>Loaded shards travel as they are: the bytes of their keys and values. Their limits are known everywhere.</summary>
internal sealed class LoadedShards(ShardMap shards) : TravellingShards
{
    /// <inheritdoc/>
    public override long RoomBytes => shards.PlanOf(0).Type.BytesFor(shards.LargestElements);

    /// <inheritdoc/>
    public override long RoomsBytes => BytesBefore(shards.Ranks);

    /// <inheritdoc/>
    public override KeyValueShard ShardIn(Region room, int rank) => new(shards.PlanOf(rank), MessageIn(room, rank), shards.LimitsOf(rank));

    /// <inheritdoc/>
    public override Region MessageIn(Region room, int rank)
    {
        ShardPlan plan = shards.PlanOf(rank);
        return room.Slice(0, plan.Bytes) with { Type = plan.Type };
    }

    /// <inheritdoc/>
    public override Region Pack(IDevice device, KeyValueShard own, Region room) => own.Contents;

    /// <inheritdoc/>
    public override Region RoomIn(Region rooms, int rank) => rooms.Slice(BytesBefore(rank), shards.PlanOf(rank).Bytes);

    /// <inheritdoc/>
    public override KeyValueShard JoinedIn(Region rooms)
    {
        (ShardPlan plan, PageLimits[] limits) = shards.Join();
        return new KeyValueShard(plan, rooms with { Type = plan.Type }, limits);
    }

    /// <inheritdoc/>
    public override void Join(IDevice device, Region rooms)
    {
        // The messages are the joined shard.
    }

    private long BytesBefore(int rank)
    {
        long bytes = 0;
        for (int before = 0; before < rank; before++)
        {
            bytes += shards.PlanOf(before).Bytes;
        }

        return bytes;
    }
}

/// <summary>The shards of all ranks as they travel: the message of each, and what its receiver attends to.</summary>
/// <remarks>Every rank knows the lengths and offsets of all messages, so none of them is sent. Made once; travelling allocates nothing.</remarks>
internal abstract class TravellingShards
{
    /// <summary>Bytes of memory in which any rank's message has room.</summary>
    public abstract long RoomBytes { get; }

    /// <summary>Bytes of memory in which the messages of all ranks have room.</summary>
    public abstract long RoomsBytes { get; }

    /// <summary>Refuses what the memories of the ranks have no room for, on every rank, before it is allocated. Every rank calls it.</summary>
    /// <remarks>Of loaded shards, which are written by then, allocating itself finds it out.</remarks>
    /// <param name="context">The rank.</param>
    /// <param name="bytes">What each rank will allocate.</param>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    public virtual void RequireMemory(RankContext context, long bytes)
    {
    }

    /// <summary>A rank's shard as it lies in the room that its message arrives in.</summary>
    public abstract KeyValueShard ShardIn(Region room, int rank);

    /// <summary>A rank's message in a room: no bytes where it has no keys.</summary>
    public abstract Region MessageIn(Region room, int rank);

    /// <summary>Takes over what the shards hold now, and gives the message of the own one.</summary>
    /// <param name="device">Copies.</param>
    /// <param name="own">This rank's shard.</param>
    /// <param name="room">Where the message is made, unless the shard is one already.</param>
    public abstract Region Pack(IDevice device, KeyValueShard own, Region room);

    /// <summary>A rank's room among those of all ranks.</summary>
    public abstract Region RoomIn(Region rooms, int rank);

    /// <summary>The keys of all ranks as one shard, in the order of their positions; to be made once.</summary>
    public abstract KeyValueShard JoinedIn(Region rooms);

    /// <summary>Makes the joined shard whole, when all messages have come.</summary>
    public abstract void Join(IDevice device, Region rooms);
}
