using System;
using System.Collections.Generic;
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TreeAttention.Devices.Cuda.Driver;
using TreeAttention.Devices.Cuda.Kernels;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Devices.Cuda.Attention;

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

/// <summary>The pages of a shard in the lanes layout: which belong to which lane, and in which order the states of a node's pages fold.</summary>
internal sealed class LaneFold
{
    private readonly int[] _firstPage = new int[LaneTree.Lanes + 1];
    private readonly Dictionary<LaneNode, StateFold[]> _programs = [];
    private readonly int _pagesPerBatch;

    /// <summary>Indexes the pages of a plan.</summary>
    /// <exception cref="ShapeMismatchException">The plan's pages are not those of lanes.</exception>
    internal LaneFold(ShardPlan plan)
    {
        _pagesPerBatch = plan.PagesPerBatch;
        LaneTree.IndexPages(plan, _firstPage);
    }

    /// <summary>The folds are still those of the plan: which pages a rank has of a growing cache follows from their number.</summary>
    internal bool IsOf(ShardPlan plan) => plan.PagesPerBatch == _pagesPerBatch;

    /// <summary>First page of a node, and how many it has, in each batch row.</summary>
    internal (int First, int Count) PagesOf(LaneNode node) => (_firstPage[node.First], _firstPage[node.First + node.Size] - _firstPage[node.First]);

    /// <summary>The folds among the states of a node's pages, which count from its first page; state 0 becomes the node's.</summary>
    /// <returns>The same array each time.</returns>
    internal StateFold[] ProgramOf(LaneNode node)
    {
        if (!_programs.TryGetValue(node, out StateFold[]? program))
        {
            var folds = new List<StateFold>();
            Plan(_firstPage, node, _firstPage[node.First], folds);
            program = [.. folds];
            _programs.Add(node, program);
        }

        return program;
    }

    /// <summary>Adds the folds among the states of a node's pages. The state of a node is that of its first page; a node without pages changes nothing.</summary>
    /// <param name="firstPage">[lanes + 1] first page of each lane.</param>
    /// <param name="node">The node.</param>
    /// <param name="origin">The page that states count from.</param>
    /// <param name="folds">Gets the folds.</param>
    internal static void Plan(int[] firstPage, LaneNode node, int origin, List<StateFold> folds)
    {
        (int first, int end) = (firstPage[node.First], firstPage[node.First + node.Size]);
        if (node.Size == 1)
        {
            for (int page = first + 1; page < end; page++)
            {
                folds.Add(new StateFold { Into = first - origin, From = page - origin });
            }

            return;
        }

        var left = new LaneNode(node.First, node.Size / 2);
        var right = new LaneNode(node.First + left.Size, left.Size);
        Plan(firstPage, left, origin, folds);
        Plan(firstPage, right, origin, folds);
        int border = firstPage[right.First];
        if (first < border && border < end)
        {
            folds.Add(new StateFold { Into = first - origin, From = border - origin });
        }
    }
}

/// <summary>The lane folds of plans, each made once and kept as long as its plan has the same pages.</summary>
internal sealed class LaneFolds
{
    private readonly ConditionalWeakTable<ShardPlan, LaneFold> _folds = [];

    /// <summary>The folds of a plan.</summary>
    internal LaneFold Of(ShardPlan plan)
    {
        if (!_folds.TryGetValue(plan, out LaneFold? fold) || !fold.IsOf(plan))
        {
            fold = new LaneFold(plan);
            _folds.AddOrUpdate(plan, fold);
        }

        return fold;
    }
}

/// <summary>The folds of a growing plan's lanes, in device memory at an address that stays: as many for any number of pages that there is room for.</summary>
/// <remarks>
/// States lie page by page, with room for <see cref="ShardPlan.RoomPages"/>; behind them one for each node, and one more. All but those of
/// the present pages are identities. Pages fold along the lanes and their tree, each node's into its own state; the steps that are left
/// fold the last identity into itself.
/// </remarks>
internal sealed class LaneProgram(DeviceCopies copies, nint address)
{
    private readonly int[] _firstPage = new int[LaneTree.Lanes + 1];
    private readonly List<StateFold> _folds = [];
    private LaneNode[] _nodes = [];
    private (int Pages, int Room) _of = (-1, -1);

    /// <summary>[room] steps.</summary>
    internal nint Address => address;

    /// <summary>Most bytes of a program.</summary>
    internal static long BytesFor(int mostPages) => Marshal.SizeOf<StateFold>() * (long)mostPages;

    /// <summary>States of a call.</summary>
    internal static int StatesFor(ShardPlan plan, int nodes) => plan.RoomPages + nodes + 1;

    /// <summary>From now on the program is for these nodes.</summary>
    internal void SetNodes(ReadOnlySpan<LaneNode> nodes)
    {
        if (!nodes.SequenceEqual(_nodes))
        {
            _nodes = nodes.ToArray();
            _of = (-1, -1);
        }
    }

    /// <summary>Enqueues a copy of the program, where the plan has other pages than before; nothing before there are nodes.</summary>
    internal void Follow(ShardPlan plan)
    {
        (int room, int last) = (plan.RoomPages, StatesFor(plan, _nodes.Length) - 1);
        if (_nodes.Length == 0 || _of == (plan.PagesPerBatch, room))
        {
            return;
        }

        LaneTree.IndexPages(plan, _firstPage);
        _folds.Clear();
        for (int node = 0; node < _nodes.Length; node++)
        {
            (int first, int end) = (_nodes[node].First, _nodes[node].First + _nodes[node].Size);
            LaneFold.Plan(_firstPage, _nodes[node], 0, _folds);
            if (_firstPage[first] < _firstPage[end])
            {
                _folds.Add(new StateFold { Into = room + node, From = _firstPage[first] });
            }
        }

        while (_folds.Count < room)
        {
            _folds.Add(new StateFold { Into = last, From = last });
        }

        copies.Upload<StateFold>(CollectionsMarshal.AsSpan(_folds), address);
        _of = (plan.PagesPerBatch, room);
    }
}
