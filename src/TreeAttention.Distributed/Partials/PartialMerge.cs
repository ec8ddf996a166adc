using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using TreeAttention.Distributed.Semantics;

namespace TreeAttention;

/// <summary>The merge of two states, row by row: the only place where partial attentions are combined on the CPU.</summary>
/// <remarks>
/// m = max(m1, m2); w_i = sum_i e^(m_i - m); share_i = w_i / (w1 + w2); output = share1·o1 + share2·o2; sum = w1 + w2
/// (FlashDecoding's combine, with max and sum apart). Both products are rounded before the addition and no fused
/// multiply-add crosses them, so that exchanging the operands changes no bit. A side that saw no key is not computed with.
/// </remarks>
public static class PartialMerge
{
    /// <summary>Folds the second state into the first, in place.</summary>
    /// <param name="output">[rows, valueDim] of the state that is changed.</param>
    /// <param name="max">[rows]</param>
    /// <param name="sum">[rows]</param>
    /// <param name="otherOutput">[rows, valueDim] of the state that is folded in.</param>
    /// <param name="otherMax">[rows]</param>
    /// <param name="otherSum">[rows]</param>
    /// <param name="valueDim">Elements of an output row.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static void Fold(
        Span<float> output, Span<float> max, Span<float> sum,
        ReadOnlySpan<float> otherOutput, ReadOnlySpan<float> otherMax, ReadOnlySpan<float> otherSum, int valueDim)
    {
        if (output.Length != max.Length * valueDim || otherOutput.Length != output.Length)
        {
            throw new ShapeMismatchException($"{max.Length} rows × {valueDim} do not fill {output.Length} and {otherOutput.Length} floats.");
        }

        ref float into = ref MemoryMarshal.GetReference(output);
        ref float from = ref MemoryMarshal.GetReference(otherOutput);
        for (int row = 0; row < max.Length; row++)
        {
            nint place = (nint)row * valueDim;
            if (otherSum[row] == 0f)
            {
                continue;
            }

            if (sum[row] == 0f)
            {
                otherOutput.Slice((int)place, valueDim).CopyTo(output.Slice((int)place, valueDim));
                (max[row], sum[row]) = (otherMax[row], otherSum[row]);
                continue;
            }

            float top = MathF.Max(max[row], otherMax[row]);
            float weight = Weight(sum[row], max[row], top);
            float otherWeight = Weight(otherSum[row], otherMax[row], top);
            float whole = weight + otherWeight;
            Blend(ref Unsafe.Add(ref into, place), weight / whole, ref Unsafe.Add(ref from, place), otherWeight / whole, valueDim);
            (max[row], sum[row]) = (top, whole);
        }
    }

    // +∞ - +∞ is NaN, but equal maxima always weigh their sums as they are.
    private static float Weight(float sum, float max, float top) => max == top ? sum : sum * MathF.Exp(max - top);

    // A weighted mean lies between its operands; holding it there keeps equal outputs equal to the bit and extreme ones
    // finite. The order of the operands lets a NaN through. Elements do not meet, so the vector's width changes no bit.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Blend(ref float into, float share, ref float from, float otherShare, int length)
    {
        int i = 0;
        if (Vector512.IsHardwareAccelerated)
        {
            var shares = Vector512.Create(share);
            var otherShares = Vector512.Create(otherShare);
            for (; i <= length - Vector512<float>.Count; i += Vector512<float>.Count)
            {
                var left = Vector512.LoadUnsafe(ref into, (nuint)i);
                var right = Vector512.LoadUnsafe(ref from, (nuint)i);
                Vector512<float> mean = (left * shares) + (right * otherShares);
                var most = Vector512.MaxNative(left, right);
                var least = Vector512.MinNative(left, right);
                Vector512.MinNative(most, Vector512.MaxNative(least, mean)).StoreUnsafe(ref into, (nuint)i);
            }
        }

        for (; i <= length - Vector256<float>.Count; i += Vector256<float>.Count)
        {
            var left = Vector256.LoadUnsafe(ref into, (nuint)i);
            var right = Vector256.LoadUnsafe(ref from, (nuint)i);
            Vector256<float> mean = (left * share) + (right * otherShare);
            var most = Vector256.MaxNative(left, right);
            var least = Vector256.MinNative(left, right);
            Vector256.MinNative(most, Vector256.MaxNative(least, mean)).StoreUnsafe(ref into, (nuint)i);
        }

        for (; i < length; i++)
        {
            float left = Unsafe.Add(ref into, i);
            float right = Unsafe.Add(ref from, i);
            float mean = (left * share) + (right * otherShare);
            Unsafe.Add(ref into, i) = float.IsNaN(mean) ? mean : Math.Clamp(mean, MathF.Min(left, right), MathF.Max(left, right));
        }
    }
}

/// <summary>The edge where states become results: sinks are added, the log-sum-exp is formed, rows take the caller's order.</summary>
/// <remarks>
/// Both happen here once and nowhere else, in double precision. A row past its batch row's query length is 0 with lse -∞,
/// sinks or not; a row that saw no key is 0, with its sink as lse if it has one. NaN goes through.
/// </remarks>
internal static class AttentionEdge
{
    private const double LogarithmOfTwo = 0.69314718055994530942; // natural

    /// <summary>Writes output and log-sum-exp of the queries that a state belongs to.</summary>
    /// <param name="problem">Sinks, query lengths, base of the logarithm.</param>
    /// <param name="indices">[count] the index of each query in its sequence.</param>
    /// <param name="state">Rows batch × query_heads × count, in host memory.</param>
    /// <param name="output">[batch, count, query_heads, value_dim]</param>
    /// <param name="lse">[batch, query_heads, count], in the base of the options, sinks included.</param>
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
            lse[row] = ToCaller(problem, logSumExp);
            ReadOnlySpan<float> mean = state.Output.Slice(row * shape.ValueDim, shape.ValueDim);
            for (int dim = 0; dim < mean.Length; dim++)
            {
                result[dim] = (float)(mean[dim] * share);
            }
        }
    }

    /// <summary>The log-sum-exp of the keys alone, for those who merge again: a sink must enter one merged result only once.</summary>
    /// <param name="problem">Query lengths, base of the logarithm.</param>
    /// <param name="indices">[count] the index of each query in its sequence.</param>
    /// <param name="state">Rows batch × query_heads × count, in host memory.</param>
    /// <param name="lse">[batch, query_heads, count], in the base of the options.</param>
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
                ? ToCaller(problem, WithSink(state.Max[row], state.Sum[row], double.NegativeInfinity).LogSumExp)
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
                + $"elements of output and {lse} of the log-sum-exp.",
                output != rows * shape.ValueDim ? nameof(output) : nameof(lse));
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

    // In the caller's base: inside, logarithms are natural.
    private static float ToCaller(AttentionProblem problem, double logSumExp) =>
        Saturate(problem.Options.LseBase == LogarithmBase.Two ? logSumExp / LogarithmOfTwo : logSumExp);

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
