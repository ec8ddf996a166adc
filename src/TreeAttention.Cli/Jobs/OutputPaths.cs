using System;
using System.IO;
using TreeAttention.Distributed;

namespace TreeAttention.Cli;

/// <summary>Where a command writes: to files of their own, so that even <c>--force</c> replaces nothing that the command reads.</summary>
internal static class OutputPaths
{
    /// <summary>Refuses outputs that are empty, an input, or each other.</summary>
    /// <exception cref="FaultException">The command line names one file twice (2).</exception>
    public static void RequireOwn(TensorRequest? tensors, SemanticsRequest semantics, string? output, string? lse)
    {
        (string Option, string? File)[] named =
        [
            ("--query", tensors?.Query), ("--key", tensors?.Key), ("--value", tensors?.Value),
            ("--key-scale", tensors?.Scales.Key?.File), ("--value-scale", tensors?.Scales.Value?.File),
            ("--alibi", semantics.Alibi), ("--sinks", semantics.Sinks), ("--key-lengths", semantics.KeyLengths),
            ("--query-lengths", semantics.QueryLengths), ("--leftpad", semantics.Leftpad), ("--cu-seqlens-q", semantics.PackedQueries),
            ("--cu-seqlens-k", semantics.PackedKeys), ("--tree-parents", semantics.TreeParents), ("--dfs-start", semantics.DfsStart), ("--dfs-end", semantics.DfsEnd),
            ("--tail-mask", semantics.TailMask), ("--tail-bias", semantics.TailBias), ("--output", output), ("--lse", lse),
        ];
        foreach ((string option, string? written) in named.AsSpan(named.Length - 2))
        {
            if (written is { Length: 0 })
            {
                throw new FaultException(FaultCode.CommandLine, $"{option} names no file: it is empty.");
            }

            foreach ((string other, string? file) in named)
            {
                if (option != other && !string.IsNullOrEmpty(written) && !string.IsNullOrEmpty(file) && IsSame(written, file))
                {
                    throw new FaultException(
                        FaultCode.CommandLine, $"{option} {written} is the file of {other} too, which would be lost. Give {option} a file of its own.");
                }
            }
        }
    }

    // An input may name a tensor inside its file.
    private static bool IsSame(string written, string file)
    {
        (string target, string taken) = (Path.GetFullPath(written), Path.GetFullPath(file));
        return target == taken || taken.StartsWith(target + ":", StringComparison.Ordinal);
    }
}
