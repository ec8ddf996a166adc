using System;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The files that rank 0 writes: refused before any work when they cannot be, and whole or absent afterwards.</summary>
internal sealed class OutputFiles : IDisposable
{
    private readonly NpyWriter? _output;
    private readonly NpyWriter? _lse;
    private readonly bool _headMajor;

    /// <summary>Finds out whether the files can be written; other ranks than 0 give null and write nothing.</summary>
    /// <exception cref="FaultException">A file exists and may not be overwritten, or cannot be created (73).</exception>
    public OutputFiles(AttendRequest? request)
    {
        if (request is null)
        {
            return;
        }

        _headMajor = request.Tensors.HeadMajor;
        _output = NpyWriter.CreateOutput(request.Output, request.Force);
        _lse = request.Lse is null ? null : NpyWriter.CreateOutput(request.Lse, request.Force);
    }

    /// <summary>Writes both files in full, then lets both appear.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="result">The result; null on ranks that have none.</param>
    /// <param name="hasBatchAxis">The output has the batch axis that the queries had.</param>
    /// <param name="isPacked">The log-sum-exp is [heads, total_q], as flash-attn's of packed sequences.</param>
    public void Write(AttentionShape shape, AttentionResult? result, bool hasBatchAxis, bool isPacked)
    {
        if (result is null || _output is null)
        {
            return;
        }

        ReadOnlySpan<long> axes = _headMajor
            ? [shape.Batch, shape.QueryHeads, shape.QueryLength, shape.ValueDim]
            : [shape.Batch, shape.QueryLength, shape.QueryHeads, shape.ValueDim];
        _output.Begin(hasBatchAxis ? axes : axes[1..]);
        if (_headMajor)
        {
            WriteHeadMajor(shape, result.Output);
        }
        else
        {
            _output.Write(result.Output);
        }

        ReadOnlySpan<long> lines = [shape.Batch, shape.QueryHeads, shape.QueryLength];
        _lse?.Begin(isPacked ? lines[1..] : lines);
        _lse?.Write(result.Lse);
        _output.Complete();
        _lse?.Complete();
        _output.Commit();
        _lse?.Commit();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _output?.Dispose();
        _lse?.Dispose();
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
