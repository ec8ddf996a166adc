using System;
using System.Linq;
using TreeAttention.Devices.Cpu;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention.Benchmarks;

/// <summary>One attention call over made-up numbers, ready to be repeated.</summary>
internal sealed class DuelContestant : IDisposable
{
    private readonly CpuDevice _device;
    private readonly AttentionProblem _problem;
    private readonly QueryBlock _queries;
    private readonly KeyValueShard _shard;
    private readonly Region _region;
    private readonly PartialAttention _into;

    internal DuelContestant(CpuDevice device, AttentionShape shape, ElementType type, AttentionOptions options)
    {
        (_device, _problem) = (device, new AttentionProblem(shape, options));
        _queries = new QueryBlock(
            device.Allocate((long)shape.Batch * shape.QueryHeads * shape.QueryLength * shape.HeadDim * sizeof(float), ElementType.Float32),
            [.. Enumerable.Range(0, shape.QueryLength)]);
        var plan = new ShardPlan(shape, ShardLayout.Contiguous.PagesOf(0, 1, shape.KeyLength), type, false);
        _shard = new KeyValueShard(plan, device.Allocate(plan.Bytes, type), new PageLimits[plan.Pages.Count * shape.KvHeads]);
        int rows = _queries.RowsFor(shape);
        _region = device.Allocate(PartialAttention.FloatsFor(rows, shape.ValueDim) * sizeof(float), ElementType.Float32);
        _into = new PartialAttention(_region, rows, shape.ValueDim);
        Fill();
        IsDecode = shape.QueryLength == 1;
        Work = IsDecode
            ? plan.Bytes
            : (double)shape.QueryHeads * (shape.HeadDim + shape.ValueDim) * shape.QueryLength * (shape.QueryLength + 1);
    }

    /// <summary>It is bound by reading.</summary>
    internal bool IsDecode { get; }

    /// <summary>Bytes of keys and values, or useful floating-point operations.</summary>
    internal double Work { get; }

    internal void Attend() => _device.Attend(_problem, _queries, _shard, _into);

    public void Dispose()
    {
        _device.Free(_queries.Values);
        _device.Free(_shard.Contents);
        _device.Free(_region);
    }

    // Uniform numbers of variance 1; their norms are bounded by √3·√128 < 20.
    private void Fill()
    {
        uint state = 12345;
        foreach (ref float value in _queries.Values.AsSpan<float>())
        {
            value = Next(ref state);
        }

        for (long i = 0; i < _shard.Plan.Elements; i += 1 << 20)
        {
            Region part = _shard.Contents.Slice(i, Math.Min(1 << 20, _shard.Plan.Elements - i));
            Fill(part, ref state);
        }

        Array.Fill(_shard.Limits, new PageLimits(14, 2));
    }

    private static void Fill(Region part, ref uint state)
    {
        if (part.Type == ElementType.Float32)
        {
            foreach (ref float value in part.AsSpan<float>())
            {
                value = Next(ref state);
            }

            return;
        }

        foreach (ref ushort value in part.AsSpan<ushort>())
        {
            float next = Next(ref state);
            value = part.Type == ElementType.Float16
                ? BitConverter.HalfToUInt16Bits((Half)next)
                : (ushort)(BitConverter.SingleToUInt32Bits(next) >> 16);
        }
    }

    private static float Next(ref uint state)
    {
        state = (state * 1664525) + 1013904223;
        return ((state >> 8) * (3.4641f / 16777216f)) - 1.73205f;
    }
}
