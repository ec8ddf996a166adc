using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;

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
