using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Testing.Devices;

/// <summary>A slow, obvious device on host memory: one query and one key at a time, in float64. Judges algorithms without the SIMD device.</summary>
internal sealed class PlainDevice : IDevice
{
    private readonly Dictionary<nint, HostMemory> _allocated = [];
    private readonly List<PartialAttention> _lanes = []; // scratch of the lane tree, one state for each depth and one for a page

    public string Name => "cpu";

    public string Description => "plain float64";

    public MemoryPlace Place => MemoryPlace.Host;

    public MemoryAccount Memory { get; } = new();

    public Region Allocate(long bytes, ElementType type)
    {
        var memory = new HostMemory(bytes, type, Memory);
        _allocated.Add(memory.Region.Address, memory);
        return memory.Region;
    }

    public void Free(Region region)
    {
        HostMemory memory = _allocated[region.Address];
        _allocated.Remove(region.Address);
        memory.Dispose();
    }

    public void Copy(Region from, Region to) => from.AsSpan<byte>().CopyTo(to.AsSpan<byte>());

    public void Clear(PartialAttention partial) => partial.Clear();

    public void Merge(PartialAttention into, PartialAttention from) => into.MergeFrom(from);

    public void Append(in TokenBlock tokens, KeyValueShard shard) => throw new NotSupportedException("Caches are tested on real devices.");

    public void ArrangeQueries(AttentionShape shape, Region queries, RotaryAngles? rotary, QueryBlock into) =>
        throw new NotSupportedException("Caches are tested on real devices.");

    public void Synchronize()
    {
    }

    public void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        into.Clear();
        for (int page = 0; page < shard.Plan.Pages.Count; page++)
        {
            AttendPage(problem, queries, shard, shard.Plan.Pages[page], into);
        }
    }

    public void AttendLanes(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard,
        ReadOnlySpan<LaneNode> nodes, ReadOnlySpan<PartialAttention> into)
    {
        for (int i = 0; i < nodes.Length; i++)
        {
            while (_lanes.Count < 10 || _lanes[0].Rows != into[i].Rows)
            {
                FreeLanesOfOtherSizes(into[i].Rows);
                Region region = Allocate(into[i].Region.Bytes, ElementType.Float32);
                _lanes.Add(new PartialAttention(region, into[i].Rows, into[i].ValueDim));
            }

            AttendNode(problem, queries, shard, nodes[i], into[i], depth: 1);
        }
    }

    public void Weigh(PartialAttention partial, Region top, float unit, Region numerator, Region denominator)
    {
        for (int row = 0; row < partial.Rows; row++)
        {
            double weight = partial.Sum[row] == 0 ? 0 : unit * partial.Sum[row] * Math.Exp(partial.Max[row] - top.AsSpan<float>()[row]);
            denominator.AsSpan<float>()[row] = (float)weight;
            for (int i = row * partial.ValueDim; i < (row + 1) * partial.ValueDim; i++)
            {
                numerator.AsSpan<float>()[i] = (float)(partial.Output[i] * weight);
            }
        }
    }

    public void Unweigh(Region top, float unit, Region numerator, Region denominator, PartialAttention into)
    {
        for (int row = 0; row < into.Rows; row++)
        {
            double weight = denominator.AsSpan<float>()[row];
            into.Max[row] = top.AsSpan<float>()[row];
            into.Sum[row] = (float)(weight / unit);
            for (int i = row * into.ValueDim; i < (row + 1) * into.ValueDim; i++)
            {
                into.Output[i] = weight == 0 ? 0 : (float)(numerator.AsSpan<float>()[i] / weight);
            }
        }
    }

    public void Dispose()
    {
        foreach (HostMemory memory in _allocated.Values)
        {
            memory.Dispose();
        }

        _allocated.Clear();
    }

    private void AttendNode(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, LaneNode node, PartialAttention into, int depth)
    {
        if (node.Size > 1)
        {
            int half = node.Size / 2;
            AttendNode(problem, queries, shard, new LaneNode(node.First, half), into, depth + 1);
            AttendNode(problem, queries, shard, new LaneNode(node.First + half, half), _lanes[depth], depth + 1);
            into.MergeFrom(_lanes[depth]);
            return;
        }

        into.Clear();
        for (int page = 0; page < shard.Plan.Pages.Count; page++)
        {
            KeyPage keys = shard.Plan.Pages[page];
            if (LaneTree.LaneOf(keys.Span.FirstPosition) == node.First)
            {
                _lanes[0].Clear();
                AttendPage(problem, queries, shard, keys, _lanes[0]);
                into.MergeFrom(_lanes[0]);
            }
        }
    }

    private void FreeLanesOfOtherSizes(int rows)
    {
        if (_lanes.Count > 0 && _lanes[0].Rows != rows)
        {
            _lanes.ForEach(lane => Free(lane.Region));
            _lanes.Clear();
        }
    }

    // Folds a page into the rows of its batch row: a new maximum rescales what was there.
    private static void AttendPage(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, KeyPage page, PartialAttention into)
    {
        AttentionShape shape = problem.Shape;
        ReadOnlySpan<float> contents = shard.Contents.AsSpan<float>();
        for (int row = page.Batch * shape.QueryHeads * queries.Count; row < (page.Batch + 1) * shape.QueryHeads * queries.Count; row++)
        {
            int head = row / queries.Count % shape.QueryHeads;
            int first = head / shape.GroupSize * page.Span.Count; // the head's first key in the page
            int query = queries.Indices[row % queries.Count];
            ReadOnlySpan<float> q = queries.Values.AsSpan<float>().Slice(row * shape.HeadDim, shape.HeadDim);
            for (int i = 0; i < page.Span.Count; i++)
            {
                int j = page.Span.PositionAt(i);
                if (problem.Mask.Keeps(page.Batch, query, j))
                {
                    ReadOnlySpan<float> k = contents.Slice((int)page.KeyOffset + ((first + i) * shape.HeadDim), shape.HeadDim);
                    ReadOnlySpan<float> v = contents.Slice((int)page.ValueOffset + ((first + i) * shard.Plan.ValueStride), shape.ValueDim);
                    AddKey(into, row, Score(problem, q, k) + problem.Mask.Bias(page.Batch, head, query, j), v);
                }
            }
        }
    }

    private static double Score(AttentionProblem problem, ReadOnlySpan<float> q, ReadOnlySpan<float> k)
    {
        double product = 0;
        for (int d = 0; d < q.Length; d++)
        {
            product += (double)q[d] * k[d];
        }

        double score = product * problem.Scale;
        double cap = problem.Options.Softcap;
        return cap > 0 ? cap * Math.Tanh(score / cap) : score;
    }

    private static void AddKey(PartialAttention into, int row, double score, ReadOnlySpan<float> value)
    {
        if (double.IsNegativeInfinity(score))
        {
            return;
        }

        // The maximum is stored in fp32, so weights refer to the rounded one.
        float top = MathF.Max(into.Max[row], (float)score);
        double kept = into.Sum[row] == 0 ? 0 : into.Sum[row] * Math.Exp((double)into.Max[row] - top);
        double added = Math.Exp(score - top);
        Span<float> output = into.Output.Slice(row * into.ValueDim, into.ValueDim);
        for (int d = 0; d < value.Length; d++)
        {
            output[d] = (float)(((kept * output[d]) + (added * value[d])) / (kept + added));
        }

        (into.Max[row], into.Sum[row]) = (top, (float)(kept + added));
    }
}
