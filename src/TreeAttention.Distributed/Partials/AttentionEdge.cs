using System;

namespace TreeAttention.Distributed;

/// <summary>The edge where states become results: sinks are added, the log-sum-exp is formed, rows take the caller's order.</summary>
/// <remarks>
/// Both happen here once and nowhere else, in double precision. A row past its batch row's query length is 0 with lse -∞,
/// sinks or not; a row that saw no key is 0, with its sink as lse if it has one. NaN goes through.
/// </remarks>
public static class AttentionEdge
{
    /// <summary>Writes output and log-sum-exp of the queries that a state belongs to.</summary>
    /// <param name="problem">Sinks and query lengths.</param>
    /// <param name="indices">[count] the index of each query in its sequence.</param>
    /// <param name="state">Rows batch × query_heads × count, in host memory.</param>
    /// <param name="output">[batch, count, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, count], natural logarithm, sinks included.</param>
    /// <exception cref="ShapeMismatchException">State, output or lse are not of these sizes.</exception>
    public static void Finish(AttentionProblem problem, int[] indices, PartialAttention state, Span<float> output, Span<float> lse)
    {
        AttentionShape shape = problem.Shape;
        RequireState(shape, indices, state);
        RequireSizes(shape, indices.Length, output.Length, lse.Length);

        for (int row = 0; row < state.Rows; row++)
        {
            int place = row % indices.Length;
            int head = row / indices.Length % shape.QueryHeads;
            int batch = row / indices.Length / shape.QueryHeads;
            int target = (((batch * indices.Length) + place) * shape.QueryHeads) + head;
            Span<float> result = output.Slice(target * shape.ValueDim, shape.ValueDim);
            bool present = indices[place] < problem.Mask.QueryLength(batch);
            double sink = problem.Options.Sinks?[head] ?? double.NegativeInfinity;
            if (!present)
            {
                result.Clear();
                lse[row] = float.NegativeInfinity;
                continue;
            }

            (double share, double logSumExp) = WithSink(state.Max[row], state.Sum[row], sink);
            lse[row] = Saturate(logSumExp);
            ReadOnlySpan<float> mean = state.Output.Slice(row * shape.ValueDim, shape.ValueDim);
            for (int dim = 0; dim < mean.Length; dim++)
            {
                result[dim] = (float)(mean[dim] * share);
            }
        }
    }

    /// <summary>The log-sum-exp of the keys alone, for those who merge again: a sink must enter one merged result only once.</summary>
    /// <param name="problem">Query lengths.</param>
    /// <param name="indices">[count] the index of each query in its sequence.</param>
    /// <param name="state">Rows batch × query_heads × count, in host memory.</param>
    /// <param name="lse">[batch, query_heads, count], natural logarithm.</param>
    /// <exception cref="ShapeMismatchException">State or lse are not of these sizes.</exception>
    public static void LogSumExpWithoutSinks(AttentionProblem problem, int[] indices, PartialAttention state, Span<float> lse)
    {
        RequireState(problem.Shape, indices, state);
        RequireSizes(problem.Shape, indices.Length, state.Output.Length, lse.Length);
        for (int row = 0; row < state.Rows; row++)
        {
            int batch = row / indices.Length / problem.Shape.QueryHeads;
            bool present = indices[row % indices.Length] < problem.Mask.QueryLength(batch);
            lse[row] = present
                ? Saturate(WithSink(state.Max[row], state.Sum[row], double.NegativeInfinity).LogSumExp)
                : float.NegativeInfinity;
        }
    }

    /// <summary>Throws when results are not of the sizes that a call gives.</summary>
    /// <param name="shape">Sizes of the call.</param>
    /// <param name="count">Queries of each batch row and head.</param>
    /// <param name="output">Elements of the output.</param>
    /// <param name="lse">Elements of the log-sum-exp.</param>
    /// <exception cref="ShapeMismatchException">Output or lse are not of these sizes.</exception>
    public static void RequireSizes(AttentionShape shape, int count, long output, long lse)
    {
        long rows = (long)shape.Batch * shape.QueryHeads * count;
        if (output != rows * shape.ValueDim || lse != rows)
        {
            throw new ShapeMismatchException(
                $"{shape.Batch} × {shape.QueryHeads} heads × {count} queries are {rows} rows × {shape.ValueDim}, but there is room for {output} "
                + $"elements of output and {lse} of the log-sum-exp.");
        }
    }

    // What of the weight the keys have, and the logarithm of the whole weight. ∞ - ∞ is NaN, so whichever of max and sink is
    // the larger is not subtracted from itself. The share of no keys is 1: their output is 0 already.
    private static (double Share, double LogSumExp) WithSink(float settled, double sum, double sink)
    {
        double max = ScoreRange.Restore(settled);
        if (sum == 0 && !double.IsNaN(max))
        {
            return (double.IsNaN(sink) ? double.NaN : 1, sink);
        }

        double top = Math.Max(max, sink);
        double weight = max == top ? sum : sum * Math.Exp(max - top);
        double sinkWeight = sink == top ? 1 : Math.Exp(sink - top);
        double whole = weight + (double.IsNegativeInfinity(sink) ? 0 : sinkWeight);
        return (weight / whole, top + Math.Log(whole));
    }

    // -∞ means that no key was seen, so a finite number that fp32 cannot hold becomes the largest that it can.
    private static float Saturate(double number) =>
        double.IsFinite(number) ? (float)Math.Clamp(number, -float.MaxValue, float.MaxValue) : (float)number;

    private static void RequireState(AttentionShape shape, int[] indices, PartialAttention state)
    {
        int rows = checked(shape.Batch * shape.QueryHeads * indices.Length);
        if (state.Rows != rows || state.ValueDim != shape.ValueDim)
        {
            throw new ShapeMismatchException(
                $"{shape.Batch} × {shape.QueryHeads} heads × {indices.Length} queries are {rows} rows × {shape.ValueDim}, but the state has "
                + $"{state.Rows} × {state.ValueDim}.");
        }
    }
}
