using System;
using System.Linq;
using TreeAttention.Distributed;
using TreeAttention.Runtime;

namespace TreeAttention.Cli;

/// <summary>Reads the masks and biases that the command line names as files.</summary>
internal static class SemanticsReader
{
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
            RequireShape("--tail-mask", givenMask.Shape, [shape.Batch, shape.QueryLength, -1]);
        }

        if (tailBias is { } givenBias)
        {
            RequireShape("--tail-bias", givenBias.Shape, [1, shape.QueryLength, -1], [shape.Batch, shape.QueryLength, -1]);
        }

        AttentionOptions options = request.Flags() with
        {
            AlibiSlopes = Floats(request.Alibi, "--alibi", [shape.QueryHeads], [shape.Batch, shape.QueryHeads], [1, shape.QueryHeads]),
            Sinks = Floats(request.Sinks, "--sinks", [shape.QueryHeads]),
            KeyLengths = Integers(request.KeyLengths, "--key-lengths", [shape.Batch]),
            QueryLengths = Integers(request.QueryLengths, "--query-lengths", [shape.Batch]),
            DfsStart = Integers(request.DfsStart, "--dfs-start", [shape.Batch, shape.QueryLength]),
            DfsEnd = Integers(request.DfsEnd, "--dfs-end", [shape.Batch, shape.KeyLength]),
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

        return options;
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

    // -1 stands for any length.
    private static void RequireShape(string option, long[] shape, params long[][] allowed)
    {
        bool fits = allowed.Any(candidate => candidate.Length == shape.Length
            && candidate.Zip(shape).All(pair => pair.First < 0 || pair.First == pair.Second));
        if (!fits)
        {
            string rule = string.Join(" or ", allowed.Select(candidate =>
                $"[{string.Join(", ", candidate.Select(length => length < 0 ? "tail" : $"{length}"))}]").Distinct());
            throw new FaultException(FaultCode.BadInput, $"{option} has shape [{string.Join(", ", shape)}], but the tensors ask for {rule}.");
        }
    }
}
