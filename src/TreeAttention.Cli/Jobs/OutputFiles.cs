using System;
using System.IO;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>The files that rank 0 writes: refused before any work when they cannot be, and whole or absent afterwards.</summary>
internal sealed class OutputFiles : IDisposable
{
    private readonly NpyWriter? _output;
    private readonly NpyWriter? _lse;

    /// <summary>Finds out whether the files can be written; other ranks than 0 give null and write nothing.</summary>
    /// <exception cref="FaultException">An output is an input, or both outputs are one file (2); a file exists and may not be overwritten, or cannot be created (73).</exception>
    public OutputFiles(AttendRequest? request)
    {
        if (request is null)
        {
            return;
        }

        RequireOwnFiles(request);
        _output = NpyWriter.CreateOutput(request.Output, request.Force);
        _lse = request.Lse is null ? null : NpyWriter.CreateOutput(request.Lse, request.Force);
    }

    /// <summary>Writes both files in full, then lets both appear.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="result">The result; null on ranks that have none.</param>
    /// <param name="headMajor">Write the output as [batch, heads, query_len, value_dim].</param>
    public void Write(AttentionShape shape, AttentionResult? result, bool headMajor)
    {
        if (result is null || _output is null)
        {
            return;
        }

        if (headMajor)
        {
            _output.Begin(shape.Batch, shape.QueryHeads, shape.QueryLength, shape.ValueDim);
            WriteHeadMajor(shape, result.Output);
        }
        else
        {
            _output.Begin(shape.Batch, shape.QueryLength, shape.QueryHeads, shape.ValueDim);
            _output.Write(result.Output);
        }

        _lse?.Begin(shape.Batch, shape.QueryHeads, shape.QueryLength);
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

    // With --force an output would replace what it was computed from.
    private static void RequireOwnFiles(AttendRequest request)
    {
        SemanticsRequest semantics = request.Semantics;
        (string Option, string? File)[] taken =
        [
            ("--query", request.Tensors.Query), ("--key", request.Tensors.Key), ("--value", request.Tensors.Value),
            ("--alibi", semantics.Alibi), ("--sinks", semantics.Sinks), ("--key-lengths", semantics.KeyLengths),
            ("--query-lengths", semantics.QueryLengths), ("--dfs-start", semantics.DfsStart), ("--dfs-end", semantics.DfsEnd),
            ("--tail-mask", semantics.TailMask), ("--tail-bias", semantics.TailBias), ("--output", request.Output), ("--lse", request.Lse),
        ];
        foreach ((string option, string? output) in taken[^2..])
        {
            if (output is { Length: 0 })
            {
                throw new FaultException(FaultCode.CommandLine, $"{option} names no file: it is empty.");
            }

            foreach ((string other, string? file) in taken)
            {
                if (option != other && output is not null && IsSame(output, file))
                {
                    throw new FaultException(
                        FaultCode.CommandLine, $"{option} {output} is the file of {other} too, which would be lost. Give {option} a file of its own.");
                }
            }
        }
    }

    // An input may name a tensor inside its file.
    private static bool IsSame(string output, string? file) => !string.IsNullOrEmpty(file)
        && (Path.GetFullPath(file) == Path.GetFullPath(output) || Path.GetFullPath(file).StartsWith(Path.GetFullPath(output) + ":", StringComparison.Ordinal));

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
