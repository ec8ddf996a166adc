using System;
using TreeAttention.Cli.Arguments;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Files;

namespace TreeAttention.Cli.Output;

/// <summary>The files that rank 0 writes: refused before any work when they cannot be, and whole or absent afterwards.</summary>
internal sealed class OutputFiles : IDisposable
{
    private readonly NpyWriter? _output;
    private readonly NpyWriter? _lse;

    /// <summary>Finds out whether the files can be written; other ranks than 0 name no files and write none.</summary>
    /// <exception cref="FaultException">A file exists and may not be overwritten, or cannot be created (73).</exception>
    public OutputFiles(string? output, string? lse, bool force)
    {
        _output = output is null ? null : NpyWriter.CreateOutput(output, force);
        _lse = lse is null ? null : NpyWriter.CreateOutput(lse, force);
    }

    /// <summary>Writes the files that were named in full, then lets them appear.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="result">The result; null on ranks that have none.</param>
    /// <param name="headMajor">Write the output as [batch, heads, query_len, value_dim].</param>
    /// <param name="hasBatchAxis">The output has the batch axis that the queries had.</param>
    /// <param name="isPacked">The log-sum-exp is [heads, total_q], as flash-attn's of packed sequences.</param>
    public void Write(AttentionShape shape, AttentionResult? result, bool headMajor, bool hasBatchAxis = true, bool isPacked = false)
    {
        if (result is null)
        {
            return;
        }

        WriteOutput(shape, result.Output, headMajor, hasBatchAxis);
        ReadOnlySpan<long> lines = [shape.Batch, shape.QueryHeads, shape.QueryLength];
        _lse?.Begin(isPacked ? lines[1..] : lines);
        _lse?.Write(result.Lse);
        _output?.Complete();
        _lse?.Complete();
        _output?.Commit();
        _lse?.Commit();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _output?.Dispose();
        _lse?.Dispose();
    }

    private void WriteOutput(AttentionShape shape, float[] output, bool headMajor, bool hasBatchAxis)
    {
        if (_output is null)
        {
            return;
        }

        ReadOnlySpan<long> axes = headMajor
            ? [shape.Batch, shape.QueryHeads, shape.QueryLength, shape.ValueDim]
            : [shape.Batch, shape.QueryLength, shape.QueryHeads, shape.ValueDim];
        _output.Begin(hasBatchAxis ? axes : axes[1..]);
        if (headMajor)
        {
            WriteHeadMajor(shape, output);
        }
        else
        {
            _output.Write(output);
        }
    }

    private void WriteHeadMajor(AttentionShape shape, float[] output)
    {
        int dim = shape.ValueDim;
        for (int batch = 0; batch < shape.Batch; batch++)
        {
            for (int head = 0; head < shape.QueryHeads; head++)
            {
                for (int i = 0; i < shape.QueryLength; i++)
                {
                    int row = (((batch * shape.QueryLength) + i) * shape.QueryHeads) + head;
                    _output!.Write(output.AsSpan(row * dim, dim));
                }
            }
        }
    }
}

/// <summary>The finished result over all queries, on rank 0.</summary>
/// <param name="Output">[batch, query_len, query_heads, value_dim]</param>
/// <param name="Lse">[batch, query_heads, query_len]</param>
internal sealed record AttentionResult(float[] Output, float[] Lse)
{
    /// <summary>Room for a result of these sizes.</summary>
    public static AttentionResult Of(AttentionShape shape) => new(
        new float[(long)shape.Batch * shape.QueryLength * shape.QueryHeads * shape.ValueDim],
        new float[(long)shape.Batch * shape.QueryHeads * shape.QueryLength]);
}

/// <summary>Takes states over the edge (sinks, log-sum-exp) and brings the rows of all ranks to rank 0.</summary>
internal static class ResultGatherer
{
    /// <summary>The whole result on rank 0; null elsewhere. Every rank calls it.</summary>
    public static AttentionResult? Gather(AttentionGroup group, ShardedCall call, PartialAttention state)
    {
        if (call.Request.Plan.Placement == QueryPlacement.Sharded)
        {
            return GatherSharded(group, call, Finish(group, call, state));
        }

        return group.IsRoot ? ResultOf(Finish(group, call, state)) : null;
    }

    /// <summary>On rank 0 the whole result that another rank has, which with replicated queries every rank has; null elsewhere. Every rank calls it.</summary>
    public static AttentionResult? GatherFrom(AttentionGroup group, ShardedCall call, PartialAttention state, int rank)
    {
        if (group.Rank == rank)
        {
            Move(Finish(group, call, state), region => group.Context.Transport.Send(region, 0));
        }

        if (!group.IsRoot)
        {
            return null;
        }

        var theirs = new FinishedRows(call.Problem.Shape, call.Indices.Length);
        Move(theirs, region => group.Context.Transport.Receive(region, rank));
        return ResultOf(theirs);
    }

    private static AttentionResult ResultOf(FinishedRows whole) => new(whole.Output, whole.Lse);

    private static FinishedRows Finish(AttentionGroup group, ShardedCall call, PartialAttention state)
    {
        IDevice device = group.Context.Device;
        using var host = new HostMemory(state.Region.Bytes, ElementType.Float32);
        device.Copy(state.Region, host.Region);
        device.Synchronize();
        var finished = new FinishedRows(call.Problem.Shape, call.Indices.Length);
        AttentionEdge.Finish(
            call.Problem, call.Indices, new PartialAttention(host.Region, state.Rows, state.ValueDim), finished.Output, finished.Lse);
        return finished;
    }

    private static AttentionResult? GatherSharded(AttentionGroup group, ShardedCall call, FinishedRows mine)
    {
        AttentionShape shape = call.Problem.Shape;
        ITransport transport = group.Context.Transport;
        if (!group.IsRoot)
        {
            Move(mine, region => transport.Send(region, 0));
            return null;
        }

        var whole = AttentionResult.Of(shape);
        mine.Scatter(shape, call.Indices, whole);
        for (int rank = 1; rank < group.Size; rank++)
        {
            int[] indices = QueryLayout.IndicesOf(QueryPlacement.Sharded, call.Request.Layout, shape, rank, group.Size);
            var theirs = new FinishedRows(shape, indices.Length);
            int from = rank;
            Move(theirs, region => transport.Receive(region, from));
            theirs.Scatter(shape, indices, whole);
        }

        return whole;
    }

    // Transports move memory that the garbage collector leaves in place.
    private static void Move(FinishedRows rows, Action<Region> move)
    {
        foreach (float[] values in (float[][])[rows.Output, rows.Lse])
        {
            using var fixedMemory = new HostMemory((long)values.Length * sizeof(float), ElementType.Float32);
            Span<float> moved = fixedMemory.Region.AsSpan<float>();
            values.CopyTo(moved);
            move(fixedMemory.Region);
            moved.CopyTo(values);
        }
    }

    /// <summary>The finished rows of some queries: output [batch, count, heads, value_dim] and lse [batch, heads, count].</summary>
    private sealed class FinishedRows(AttentionShape shape, int count)
    {
        public float[] Output { get; } = new float[(long)shape.Batch * count * shape.QueryHeads * shape.ValueDim];

        public float[] Lse { get; } = new float[(long)shape.Batch * shape.QueryHeads * count];

        public void Scatter(AttentionShape shape, int[] indices, AttentionResult whole)
        {
            int row = shape.QueryHeads * shape.ValueDim;
            for (int batch = 0; batch < shape.Batch; batch++)
            {
                for (int local = 0; local < count; local++)
                {
                    Array.Copy(
                        Output, ((long)(batch * count) + local) * row, whole.Output, (((long)batch * shape.QueryLength) + indices[local]) * row, row);
                    for (int head = 0; head < shape.QueryHeads; head++)
                    {
                        long line = ((long)batch * shape.QueryHeads) + head;
                        whole.Lse[(line * shape.QueryLength) + indices[local]] = Lse[(line * count) + local];
                    }
                }
            }
        }
    }
}
