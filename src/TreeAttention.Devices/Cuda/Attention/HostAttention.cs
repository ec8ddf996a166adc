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
        using HostMemory contents = copies.Download(shard.Contents);
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
        ShardPlan plan = shard.Plan.Extract(page);
        using HostMemory contents = new(plan.Bytes, plan.Type);
        KeyValueShard alone = TakePage(shard, page, plan, contents.Region);
        using HostMemory computed = AttendTo(problem, queries, alone, state.Rows);
        using HostMemory found = copies.Download(state.Region);
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

    private HostMemory AttendTo(AttentionProblem problem, QueryBlock queries, KeyValueShard shard, int rows)
    {
        Calls++;
        _cpu ??= new CpuDevice(threads);
        using HostMemory values = copies.Download(queries.Values);
        var result = new HostMemory(PartialAttention.FloatsFor(rows, problem.Shape.ValueDim) * sizeof(float), ElementType.Float32);
        var partial = new PartialAttention(result.Region, rows, problem.Shape.ValueDim);
        partial.Clear();
        _cpu.Attend(problem, queries with { Values = values.Region }, shard, partial);
        return result;
    }

    private KeyValueShard TakePage(KeyValueShard shard, int page, ShardPlan alone, Region into)
    {
        ShardPlan whole = shard.Plan;
        AttentionShape shape = whole.Shape;
        var limits = new PageLimits[shape.Batch * shape.KvHeads];
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            KeyPage from = whole.Pages[(batch * whole.PagesPerBatch) + page];
            KeyPage to = alone.Pages[batch];
            long keys = (long)shape.KvHeads * from.Capacity * shape.HeadDim;
            copies.Copy(shard.Contents.Slice(from.KeyOffset, keys), into.Slice(to.KeyOffset, keys));
            if (!whole.ValuesInKeys)
            {
                long values = (long)shape.KvHeads * from.Capacity * shape.ValueDim;
                copies.Copy(shard.Contents.Slice(from.ValueOffset, values), into.Slice(to.ValueOffset, values));
            }

            shard.Limits.AsSpan(from.Slot * shape.KvHeads, shape.KvHeads).CopyTo(limits.AsSpan(batch * shape.KvHeads));
        }

        return new KeyValueShard(alone, into, limits);
    }
}
