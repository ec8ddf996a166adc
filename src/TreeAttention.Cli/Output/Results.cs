using System;
using TreeAttention.Distributed.Layout;
using TreeAttention.Distributed.Ports;
using TreeAttention.Runtime.Files;
using TreeAttention.Runtime.Groups;

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

/// <summary>Takes states over the edge (sinks, log-sum-exp) and brings the rows of all ranks to rank 0.</summary>
internal static class ResultGatherer
{
    /// <summary>The whole result on rank 0; null elsewhere. Every rank calls it.</summary>
    public static AttentionResult? Gather(AttentionGroup group, ShardedCall call, PartialAttention state)
    {
        if (call.Plan.Placement == QueryPlacement.Sharded)
        {
            return GatherSharded(group, call, Finish(call, state));
        }

        return group.IsRoot ? Finish(call, state) : null;
    }

    /// <summary>On rank 0 the whole result that another rank has, which with replicated queries every rank has; null elsewhere. Every rank calls it.</summary>
    public static AttentionResult? GatherFrom(AttentionGroup group, ShardedCall call, PartialAttention state, int rank)
    {
        if (group.Rank == rank)
        {
            Finish(call, state).Move(region => group.Context.Transport.Send(region, 0));
        }

        if (!group.IsRoot)
        {
            return null;
        }

        var theirs = AttentionResult.Of(call.Problem.Shape, call.Indices.Length);
        theirs.Move(region => group.Context.Transport.Receive(region, rank));
        return theirs;
    }

    private static AttentionResult Finish(ShardedCall call, PartialAttention state)
    {
        var finished = AttentionResult.Of(call.Problem.Shape, call.Indices.Length);
        call.Finish(state, finished.Output, finished.Lse);
        return finished;
    }

    private static AttentionResult? GatherSharded(AttentionGroup group, ShardedCall call, AttentionResult mine)
    {
        AttentionShape shape = call.Problem.Shape;
        ITransport transport = group.Context.Transport;
        if (!group.IsRoot)
        {
            mine.Move(region => transport.Send(region, 0));
            return null;
        }

        var whole = AttentionResult.Of(shape);
        whole.Scatter(mine, call.Indices);
        for (int rank = 1; rank < group.Size; rank++)
        {
            int[] indices = QueryLayout.IndicesOf(QueryPlacement.Sharded, call.Layout, shape, rank, group.Size);
            var theirs = AttentionResult.Of(shape, indices.Length);
            int from = rank;
            theirs.Move(region => transport.Receive(region, from));
            whole.Scatter(theirs, indices);
        }

        return whole;
    }
}
