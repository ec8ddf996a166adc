using System;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>Reads the masks and biases that the command line names as files.</summary>
internal static class SemanticsReader
{
    // Stand for lengths that the files themselves say.
    private const long Tail = -1;
    private const long Bounds = -2;

    /// <summary>The options of the call.</summary>
    /// <param name="request">The options as the command line names them.</param>
    /// <param name="shape">Sizes of the tensors.</param>
    /// <param name="nonFinite">What NaN and infinities do; -∞ in sinks and tail bias is as good as a number.</param>
    /// <exception cref="FaultException">A file is missing, bad, or of a shape that no option has.</exception>
    public static AttentionOptions Read(SemanticsRequest request, AttentionShape shape, NonFinitePolicy nonFinite)
    {
        (float[] Values, long[] Shape)? tailBias = request.TailBias is { } bias ? OptionTensor.Floats(bias, "--tail-bias") : null;
        (bool[] Values, long[] Shape)? tailMask = request.TailMask is { } mask ? OptionTensor.Booleans(mask, "--tail-mask") : null;
        if (tailMask is { } givenMask)
        {
            RequireShape("--tail-mask", givenMask.Shape, [shape.Batch, shape.QueryLength, Tail]);
        }

        if (tailBias is { } givenBias)
        {
            RequireShape("--tail-bias", givenBias.Shape, [1, shape.QueryLength, Tail], [shape.Batch, shape.QueryLength, Tail]);
        }

        int[]? packedQueries = Integers(request.PackedQueries, "--cu-seqlens-q", [Bounds]);
        int rows = packedQueries is null ? shape.Batch : packedQueries.Length - 1;
        AttentionOptions options = request.Flags() with
        {
            AlibiSlopes = Floats(request.Alibi, "--alibi", [shape.QueryHeads], [rows, shape.QueryHeads], [1, shape.QueryHeads]),
            Sinks = Floats(request.Sinks, "--sinks", [shape.QueryHeads]),
            KeyLengths = Integers(request.KeyLengths, "--key-lengths", [shape.Batch]),
            QueryLengths = Integers(request.QueryLengths, "--query-lengths", [shape.Batch]),
            KeyStarts = Integers(request.Leftpad, "--leftpad", [shape.Batch]),
            PackedQueries = packedQueries,
            PackedKeys = Integers(request.PackedKeys, "--cu-seqlens-k", [Bounds]),
            DfsStart = Integers(request.DfsStart, "--dfs-start", OfTokens(request, shape.Batch, shape.QueryLength)),
            DfsEnd = Integers(request.DfsEnd, "--dfs-end", OfTokens(request, shape.Batch, shape.KeyLength)),
            TailMask = tailMask?.Values,
            TailMaskLength = (int)(tailMask?.Shape[2] ?? 0),
            TailBias = tailBias?.Values,
            TailBiasLength = (int)(tailBias?.Shape[2] ?? 0),
        };
        if (nonFinite == NonFinitePolicy.Error)
        {
            RequireNumbers("--alibi", options.AlibiSlopes, least: float.MinValue);
            RequireNumbers("--sinks", options.Sinks, least: float.NegativeInfinity);
            RequireNumbers("--tail-bias", options.TailBias, least: float.NegativeInfinity);
        }

        return request.TreeParents is { } file ? WithTrees(options, file, shape) : options;
    }

    // Packed sequences may come without their batch axis, as flash-attn has them.
    private static long[][] OfTokens(SemanticsRequest request, int batch, int length) =>
        request.IsPacked ? [[batch, length], [length]] : [[batch, length]];

    private static AttentionOptions WithTrees(AttentionOptions options, string file, AttentionShape shape)
    {
        int[] parents = Integers(file, "--tree-parents", [shape.QueryLength], [shape.Batch, shape.QueryLength])!;
        int most = shape.QueryLength;
        int rows = Math.Max(1, parents.Length / Math.Max(1, most));
        TokenTree[] trees = [.. Enumerable.Range(0, shape.Batch).Select(row => TreeOf(
            row, parents.AsSpan(row % rows * most, Math.Clamp(options.QueryLengths?[row] ?? most, 0, most))))];
        return TokenTreeMask.Apply(options, shape.Batch, most, trees);
    }

    private static TokenTree TreeOf(int row, ReadOnlySpan<int> parents)
    {
        try
        {
            return TokenTree.FromParents(parents);
        }
        catch (FaultException fault)
        {
            throw new FaultException(fault.Code, $"--tree-parents of batch row {row}: {fault.Message}", fault);
        }
    }

    private static float[]? Floats(string? file, string option, params long[][] allowed)
    {
        if (file is null)
        {
            return null;
        }

        (float[] values, long[] shape) = OptionTensor.Floats(file, option);
        RequireShape(option, shape, allowed);
        return values;
    }

    private static int[]? Integers(string? file, string option, params long[][] allowed)
    {
        if (file is null)
        {
            return null;
        }

        (int[] values, long[] shape) = OptionTensor.Integers(file, option);
        RequireShape(option, shape, allowed);
        return values;
    }

    private static void RequireNumbers(string option, float[]? values, float least)
    {
        int bad = Array.FindIndex(values ?? [], value => !(value >= least && value <= float.MaxValue));
        if (bad >= 0)
        {
            string what = FormattableString.Invariant($"{option} has {values![bad]} as element {bad} in row-major order");
            throw new FaultException(
                FaultCode.BadInput,
                $"{what}: not a number that float32 holds. Repair the file, or let it through with --nan propagate.");
        }
    }

    private static void RequireShape(string option, long[] shape, params long[][] allowed)
    {
        bool fits = allowed.Any(candidate => candidate.Length == shape.Length
            && candidate.Zip(shape).All(pair => pair.First < 0 || pair.First == pair.Second));
        if (!fits)
        {
            string rule = string.Join(" or ", allowed.Select(candidate =>
                $"[{string.Join(", ", candidate.Select(length => length switch { Tail => "tail", Bounds => "sequences + 1", _ => $"{length}" }))}]").Distinct());
            throw new FaultException(FaultCode.BadInput, $"{option} has shape [{string.Join(", ", shape)}], but the tensors ask for {rule}.");
        }
    }
}
