using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Calls whose numbers are too large for the kernels: copied back, computed by the CPU's precise kernels, uploaded. Slow and right.</summary>
internal sealed class HostAttention(DeviceCopies copies, int threads) : IDisposable
{
    private CpuDevice? _cpu;

    /// <summary>How often the host computed.</summary>
    internal long Calls { get; private set; }

    /// <summary>A whole call.</summary>
    internal void Attend(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, PartialAttention into)
    {
        using HostMemory contents = Download(shard.Contents);
        using HostMemory result = AttendTo(problem, queries, shard with { Contents = contents.Region }, into.Rows);
        copies.Copy(result.Region, into.Region);
    }

    /// <summary>
    /// One page of every batch row: the rows that are marked get the host's numbers, the others keep what the device found.
    /// </summary>
    /// <param name="problem">The call.</param>
    /// <param name="queries">The queries, on the device.</param>
    /// <param name="shard">The shard, on the device.</param>
    /// <param name="page">Which page of each batch row.</param>
    /// <param name="isMarked">[rows]</param>
    /// <param name="state">The page's state on the device.</param>
    internal void ReplaceRows(
        AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int page, ReadOnlySpan<bool> isMarked, PartialAttention state)
    {
        using HostMemory contents = new(PlanOf(shard.Plan, page).Bytes, shard.Plan.Type);
        KeyValueShard alone = TakePage(shard, page, contents.Region);
        using HostMemory computed = AttendTo(problem, queries, alone, state.Rows);
        using HostMemory found = Download(state.Region);
        var right = new PartialAttention(computed.Region, state.Rows, state.ValueDim);
        var mixed = new PartialAttention(found.Region, state.Rows, state.ValueDim);
        for (int row = 0; row < state.Rows; row++)
        {
            if (isMarked[row])
            {
                right.Output.Slice(row * state.ValueDim, state.ValueDim).CopyTo(mixed.Output.Slice(row * state.ValueDim, state.ValueDim));
                (mixed.Max[row], mixed.Sum[row]) = (right.Max[row], right.Sum[row]);
            }
        }

        copies.Copy(found.Region, state.Region);
    }

    public void Dispose() => _cpu?.Dispose();

    private static ShardPlan PlanOf(ShardPlan plan, int page) => new(plan.Shape, [plan.Pages[page].Span], plan.Type, plan.ValuesInKeys);

    private HostMemory AttendTo(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int rows)
    {
        Calls++;
        _cpu ??= new CpuDevice(threads);
        using HostMemory values = Download(queries.Values);
        var result = new HostMemory(PartialAttention.FloatsFor(rows, problem.Shape.ValueDim) * sizeof(float), ElementType.Float32);
        var partial = new PartialAttention(result.Region, rows, problem.Shape.ValueDim);
        partial.Clear();
        _cpu.Attend(problem, queries with { Values = values.Region }, shard, partial);
        return result;
    }

    private KeyValueShard TakePage(KeyValueShard shard, int page, Region into)
    {
        ShardPlan whole = shard.Plan;
        AttentionShape shape = whole.Shape;
        ShardPlan alone = PlanOf(whole, page);
        var limits = new PageLimits[shape.Batch * shape.KvHeads];
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            int number = (batch * whole.PagesPerBatch) + page;
            KeyPage from = whole.Pages[number];
            KeyPage to = alone.Pages[batch];
            long keys = (long)shape.KvHeads * from.Span.Count * shape.HeadDim;
            copies.Copy(shard.Contents.Slice(from.KeyOffset, keys), into.Slice(to.KeyOffset, keys));
            if (!whole.ValuesInKeys)
            {
                long values = (long)shape.KvHeads * from.Span.Count * shape.ValueDim;
                copies.Copy(shard.Contents.Slice(from.ValueOffset, values), into.Slice(to.ValueOffset, values));
            }

            shard.Limits.AsSpan(number * shape.KvHeads, shape.KvHeads).CopyTo(limits.AsSpan(batch * shape.KvHeads));
        }

        return new KeyValueShard(alone, into, limits);
    }

    private HostMemory Download(Region region)
    {
        var host = new HostMemory(region.Bytes, region.Type);
        copies.Copy(region, host.Region);
        return host;
    }
}
