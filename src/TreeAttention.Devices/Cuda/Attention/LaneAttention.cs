using System;
using System.Numerics;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>The reproducible mode: every page from scratch, states folded in the fixed order of the lanes and their tree.</summary>
/// <remarks>
/// How many pages are computed at once depends on the memory of a state, and changes no bit: a part of the tree that does not
/// fit is folded by halves, a lane that does not fit page after page, as ever. Of a plan that grows all pages that there is room for
/// are computed at once, if they fit, so that the launches stay the same while it grows.
/// </remarks>
internal sealed class LaneAttention(AttendLaunch launch, StateKernels states, DeviceTables tables, DeviceMemoryPool pool, DeviceCopies copies)
{
    // Nodes of a rank, and a state more: more than there can be, and the same on every rank.
    private const int MostNodes = 32;

    private readonly LaneFolds _folds = new();
    private readonly (nint Address, long Bytes)[] _halves = new (nint, long)[BitOperations.Log2(LaneTree.Lanes)];
    private AttentionProblem _problem = null!;
    private QueryBlock _queries = null!;
    private KeyValueShard _shard = null!;

    /// <summary>Runs the whole call.</summary>
    /// <param name="problem">The call.</param>
    /// <param name="queries">Queries.</param>
    /// <param name="shard">A shard in the lanes layout.</param>
    /// <param name="nodes">Nodes of the lane tree.</param>
    /// <param name="into">A partial for each node.</param>
    internal void Attend(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        if (nodes.Length != into.Length)
        {
            throw new ShapeMismatchException($"{nodes.Length} lane nodes need as many partials, not {into.Length}.");
        }

        (_problem, _queries, _shard) = (problem, queries, shard);
        if (shard.Plan.RowLengths is not null)
        {
            if (shard.Plan.RoomPages + MostNodes < launch.MostStates(into[0]))
            {
                AttendRoom(nodes, into);
                return;
            }

            tables.BindToPages(shard.Plan);
        }

        LaneFold folds = _folds.Of(shard.Plan);
        for (int i = 0; i < nodes.Length; i++)
        {
            if (into[i].Rows > 0)
            {
                Attend(folds, nodes[i], into[i]);
            }
        }
    }

    private void AttendRoom(ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        PartialAttention like = into[0];
        if (like.Rows == 0)
        {
            return;
        }

        int room = _shard.Plan.RoomPages;
        nint parts = AttendPages(0, LaneProgram.StatesFor(_shard.Plan, nodes.Length), like);
        states.Fold(parts, tables.LanesOf(_shard.Plan, nodes), like.Region.Count, room, like.Rows, like.ValueDim);
        for (int node = 0; node < nodes.Length; node++)
        {
            copies.Copy(like.Region with { Address = parts + (nint)((room + node) * like.Region.Bytes) }, into[node].Region);
        }
    }

    private void Attend(LaneFold folds, LaneNode node, PartialAttention into)
    {
        (int first, int count) = folds.PagesOf(node);
        if (count == 0)
        {
            states.Clear(into);
        }
        else if (count <= launch.MostStates(into))
        {
            nint parts = AttendPages(first, count, into);
            StateFold[] program = folds.ProgramOf(node);
            if (program.Length > 0)
            {
                states.Fold(parts, tables.Of(program), into.Region.Count, program.Length, into.Rows, into.ValueDim);
            }

            copies.Copy(into.Region with { Address = parts }, into.Region);
        }
        else if (node.Size == 1)
        {
            AttendLane(first, count, into);
        }
        else
        {
            AttendHalves(folds, node, into);
        }
    }

    private void AttendHalves(LaneFold folds, LaneNode node, PartialAttention into)
    {
        int half = node.Size / 2;
        Attend(folds, new LaneNode(node.First, half), into);
        nint other = OtherHalf(BitOperations.Log2((uint)half), into.Region.Bytes);
        Attend(folds, new LaneNode(node.First + half, half), new PartialAttention(into.Region with { Address = other }, into.Rows, into.ValueDim));
        states.Merge(into.Region.Address, other, into.Region.Count, 1, into.Rows, into.ValueDim);
    }

    // Kept, so that a capture finds it: for the halves of each size one state, of which a larger call makes a larger one.
    private nint OtherHalf(int size, long bytes)
    {
        ref (nint Address, long Bytes) half = ref _halves[size];
        if (half.Bytes < bytes)
        {
            if (half.Bytes > 0)
            {
                pool.Give(half.Address);
            }

            half = (pool.Take(bytes), bytes);
        }

        return half.Address;
    }

    private void AttendLane(int first, int count, PartialAttention into)
    {
        int most = launch.MostStates(into);
        states.Clear(into);
        for (int done = 0; done < count; done += most)
        {
            int pages = Math.Min(most, count - done);
            nint parts = AttendPages(first + done, pages, into);
            states.Merge(into.Region.Address, parts, into.Region.Count, pages, into.Rows, into.ValueDim);
        }
    }

    private nint AttendPages(int first, int count, PartialAttention like) => launch.AttendPages(_problem, _queries, _shard, first, count, like);
}
