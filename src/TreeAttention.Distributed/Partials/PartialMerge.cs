using System;
using System.Numerics;
using System.Runtime.InteropServices;

namespace TreeAttention.Distributed;

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
    public static void Fold(
        Span<float> output, Span<float> max, Span<float> sum,
        ReadOnlySpan<float> otherOutput, ReadOnlySpan<float> otherMax, ReadOnlySpan<float> otherSum, int valueDim)
    {
        for (int row = 0; row < max.Length; row++)
        {
            if (otherSum[row] == 0f)
            {
                continue;
            }

            Span<float> into = output.Slice(row * valueDim, valueDim);
            ReadOnlySpan<float> from = otherOutput.Slice(row * valueDim, valueDim);
            if (sum[row] == 0f)
            {
                from.CopyTo(into);
                (max[row], sum[row]) = (otherMax[row], otherSum[row]);
                continue;
            }

            float top = MathF.Max(max[row], otherMax[row]);
            float weight = Weight(sum[row], max[row], top);
            float otherWeight = Weight(otherSum[row], otherMax[row], top);
            float whole = weight + otherWeight;
            Blend(into, weight / whole, from, otherWeight / whole);
            (max[row], sum[row]) = (top, whole);
        }
    }

    // +∞ - +∞ is NaN, but equal maxima always weigh their sums as they are.
    private static float Weight(float sum, float max, float top) => max == top ? sum : sum * MathF.Exp(max - top);

    // A weighted mean lies between its operands; holding it there keeps equal outputs equal to the bit and extreme ones
    // finite. The order of the operands lets a NaN through.
    private static void Blend(Span<float> into, float share, ReadOnlySpan<float> from, float otherShare)
    {
        int width = Vector<float>.Count;
        Span<Vector<float>> vectors = MemoryMarshal.Cast<float, Vector<float>>(into);
        ReadOnlySpan<Vector<float>> otherVectors = MemoryMarshal.Cast<float, Vector<float>>(from);
        for (int i = 0; i < vectors.Length && i < otherVectors.Length; i++)
        {
            Vector<float> left = vectors[i];
            Vector<float> right = otherVectors[i];
            Vector<float> mean = (left * share) + (right * otherShare);
            var least = Vector.MinNative(left, right);
            var most = Vector.MaxNative(left, right);
            vectors[i] = Vector.MinNative(most, Vector.MaxNative(least, mean));
        }

        for (int i = vectors.Length * width; i < into.Length; i++)
        {
            float mean = (into[i] * share) + (from[i] * otherShare);
            into[i] = float.IsNaN(mean) ? mean : Math.Clamp(mean, MathF.Min(into[i], from[i]), MathF.Max(into[i], from[i]));
        }
    }
}
