using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
