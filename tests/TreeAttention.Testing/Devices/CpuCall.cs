using System;
using System.Collections.Generic;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;
using TreeAttention.Testing.Cases;
using TreeAttention.Testing.Partials;

namespace TreeAttention.Testing.Devices;

/// <summary>A case's inputs of one rank in a device's memory.</summary>
internal sealed class CpuCall : IDisposable
{
    private readonly CpuCase _case;
    private readonly CpuDevice _device;
    private readonly AttentionProblem _problem;
    private readonly QueryBlock _queries;
    private readonly KeyValueShard _shard;
    private readonly Region _region;

    internal CpuCall(CpuCase inputs, CpuDevice device, int rank, KeyValueScales? attendedBy = null)
    {
        (_case, _device, _problem) = (inputs, device, inputs.Problem);
        AttentionShape shape = inputs.Shape;
        Region queries = device.Allocate(inputs.Query.Length * sizeof(float), ElementType.Float32);
        inputs.Query.CopyTo(queries.AsSpan<float>());
        _queries = new QueryBlock(queries, [.. Enumerable.Range(0, shape.QueryLength)]);
        ShardPlan plan = inputs.PlanOf(rank);
        _shard = new KeyValueShard(plan, device.Allocate(plan.Bytes, inputs.Type), new PageLimits[plan.Pages.Count * shape.KvHeads]);
        _region = device.Allocate(PartialAttention.FloatsFor(inputs.Rows, shape.ValueDim) * sizeof(float), ElementType.Float32);
        _region.AsSpan<float>().Fill(float.NaN);
        Into = new PartialAttention(_region, inputs.Rows, shape.ValueDim);
        Store();
        _shard = attendedBy is null ? _shard : _shard with
        {
            Plan = new ShardPlan(shape, inputs.Layout.PagesOf(rank, inputs.Ranks, shape.KeyLength), inputs.Type, inputs.ValuesInKeys, attendedBy),
        };
    }

    internal PartialAttention Into { get; }

    internal void Attend() => _device.Attend(_problem, _queries, _shard, Into);

    internal PartialResult Read() => PartialResult.Of(Into);

    /// <summary>Attends along lane nodes and gives one result for each.</summary>
    internal List<PartialResult> AttendLanes(IReadOnlyList<LaneNode> nodes)
    {
        var regions = nodes.Select(_ => _device.Allocate(_region.Bytes, ElementType.Float32)).ToList();
        PartialAttention[] partials = [.. regions.Select(region => new PartialAttention(region, Into.Rows, Into.ValueDim))];
        _device.AttendLanes(_problem, _queries, _shard, [.. nodes], partials);
        var results = partials.Select(PartialResult.Of).ToList();
        regions.ForEach(_device.Free);
        return results;
    }

    public void Dispose()
    {
        _device.Free(_queries.Values);
        _device.Free(_shard.Contents);
        _device.Free(_region);
    }

    private void Store()
    {
        AttentionShape shape = _case.Shape;
        for (int page = 0; page < _shard.Plan.Pages.Count; page++)
        {
            KeyPage place = _shard.Plan.Pages[page];
            for (int head = 0; head < shape.KvHeads; head++)
            {
                float norm = 0;
                float largest = 0;
                for (int n = 0; n < place.Span.Count; n++)
                {
                    int key = (((place.Batch * shape.KvHeads) + head) * shape.KeyLength) + place.Span.PositionAt(n);
                    long at = (head * place.Span.Count) + n;
                    ReadOnlySpan<float> keys = _case.Key.AsSpan(key * shape.HeadDim, shape.HeadDim);
                    ReadOnlySpan<float> values = _case.Value.AsSpan(key * shape.ValueDim, shape.ValueDim);
                    Write(place.KeyOffset + (at * shape.HeadDim), keys, _shard.Plan.KeyScaleOf(head));
                    if (!_shard.Plan.ValuesInKeys)
                    {
                        Write(place.ValueOffset + (at * shape.ValueDim), values, _shard.Plan.ValueScaleOf(head));
                    }

                    norm = MathF.Max(norm, (float)Math.Sqrt(keys.ToArray().Sum(x => (double)x * x)));
                    largest = MathF.Max(largest, values.ToArray().Max(MathF.Abs));
                    largest = values.ToArray().Any(float.IsNaN) ? float.NaN : largest;
                }

                _shard.Limits[(page * shape.KvHeads) + head] = new PageLimits(norm, largest);
            }
        }
    }

    private void Write(long at, ReadOnlySpan<float> values, float scale)
    {
        for (int e = 0; e < values.Length; e++)
        {
            StoredValues.Write(_shard.Contents, at + e, values[e] / scale);
        }
    }
}
