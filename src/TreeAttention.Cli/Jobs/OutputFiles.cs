using System;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

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
