using System;
using System.Runtime.CompilerServices;

namespace TreeAttention.Devices;

/// <summary>The register tile of both products: out[a][rows] = Σ_k left(a, k)·right[k][rows].</summary>
/// <remarks>
/// left(a, k) = left[a·outer + k·inner]: for scores a is a key and k runs along the head dimension, for outputs a is a value's
/// element and k runs over keys. Panels of three vectors take four a at a time, panels of one take eight: twelve or eight
/// accumulators fit both register files, and every load of right meets four or eight broadcasts.
/// </remarks>
internal static unsafe class PanelProduct<TWidth, TVector>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>One tile.</summary>
    /// <param name="width">Rows of the panel: one or three vectors.</param>
    /// <param name="left">Broadcast operand.</param>
    /// <param name="outer">Floats from one a to the next.</param>
    /// <param name="inner">Floats from one k to the next.</param>
    /// <param name="first">First a; those from <paramref name="count"/> on repeat the last.</param>
    /// <param name="count">Number of a.</param>
    /// <param name="depth">Number of k.</param>
    /// <param name="chain">Longest chain of multiply-adds; the sums of longer products are added up chain by chain, which rounds less.</param>
    /// <param name="right">[depth][width]</param>
    /// <param name="output">[a][width]</param>
    /// <param name="correction">[width]: output := output·correction + product; null: output := product.</param>
    internal static void Multiply(
        int width, float* left, nint outer, nint inner, int first, int count, int depth, int chain, float* right, float* output,
        float* correction)
    {
        float** rows = stackalloc float*[8];
        for (int a = 0; a < 8; a++)
        {
            rows[a] = left + (Math.Min(first + a, count - 1) * outer);
        }

        if (width == TWidth.Count)
        {
            EightByOne(rows, inner, depth, chain, right, output, correction);
        }
        else
        {
            FourByThree(rows, inner, depth, chain, right, output, correction);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByThree(float** left, nint inner, int depth, int chain, float* right, float* output, float* correction)
    {
        float* r0 = left[0], r1 = left[1], r2 = left[2], r3 = left[3];
        nint at = 0;
        for (int done = 0; done < depth; done += chain)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0;
            TVector c0 = a0, c1 = a0, c2 = a0, d0 = a0, d1 = a0, d2 = a0;
            float* last = right + ((nint)Math.Min(chain, depth - done) * 3 * TWidth.Count);
            for (; right < last; at += inner)
            {
                TVector x = TWidth.Load(right);
                TVector y = TWidth.Load(right + TWidth.Count);
                TVector z = TWidth.Load(right + (2 * TWidth.Count));
                right += 3 * TWidth.Count;
                TVector l = TWidth.Create(r0[at]);
                a0 = TWidth.MultiplyAdd(l, x, a0);
                a1 = TWidth.MultiplyAdd(l, y, a1);
                a2 = TWidth.MultiplyAdd(l, z, a2);
                l = TWidth.Create(r1[at]);
                b0 = TWidth.MultiplyAdd(l, x, b0);
                b1 = TWidth.MultiplyAdd(l, y, b1);
                b2 = TWidth.MultiplyAdd(l, z, b2);
                l = TWidth.Create(r2[at]);
                c0 = TWidth.MultiplyAdd(l, x, c0);
                c1 = TWidth.MultiplyAdd(l, y, c1);
                c2 = TWidth.MultiplyAdd(l, z, c2);
                l = TWidth.Create(r3[at]);
                d0 = TWidth.MultiplyAdd(l, x, d0);
                d1 = TWidth.MultiplyAdd(l, y, d1);
                d2 = TWidth.MultiplyAdd(l, z, d2);
            }

            bool isFirst = done == 0;
            Store(output, correction, isFirst, a0, a1, a2);
            Store(output + (3 * TWidth.Count), correction, isFirst, b0, b1, b2);
            Store(output + (6 * TWidth.Count), correction, isFirst, c0, c1, c2);
            Store(output + (9 * TWidth.Count), correction, isFirst, d0, d1, d2);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void EightByOne(float** left, nint inner, int depth, int chain, float* right, float* output, float* correction)
    {
        float* r0 = left[0], r1 = left[1], r2 = left[2], r3 = left[3], r4 = left[4], r5 = left[5], r6 = left[6], r7 = left[7];
        nint at = 0;
        for (int done = 0; done < depth; done += chain)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            float* last = right + ((nint)Math.Min(chain, depth - done) * TWidth.Count);
            for (; right < last; at += inner)
            {
                TVector x = TWidth.Load(right);
                right += TWidth.Count;
                a0 = TWidth.MultiplyAdd(TWidth.Create(r0[at]), x, a0);
                a1 = TWidth.MultiplyAdd(TWidth.Create(r1[at]), x, a1);
                a2 = TWidth.MultiplyAdd(TWidth.Create(r2[at]), x, a2);
                a3 = TWidth.MultiplyAdd(TWidth.Create(r3[at]), x, a3);
                a4 = TWidth.MultiplyAdd(TWidth.Create(r4[at]), x, a4);
                a5 = TWidth.MultiplyAdd(TWidth.Create(r5[at]), x, a5);
                a6 = TWidth.MultiplyAdd(TWidth.Create(r6[at]), x, a6);
                a7 = TWidth.MultiplyAdd(TWidth.Create(r7[at]), x, a7);
            }

            bool isFirst = done == 0;
            Store(output, correction, isFirst, a0);
            Store(output + TWidth.Count, correction, isFirst, a1);
            Store(output + (2 * TWidth.Count), correction, isFirst, a2);
            Store(output + (3 * TWidth.Count), correction, isFirst, a3);
            Store(output + (4 * TWidth.Count), correction, isFirst, a4);
            Store(output + (5 * TWidth.Count), correction, isFirst, a5);
            Store(output + (6 * TWidth.Count), correction, isFirst, a6);
            Store(output + (7 * TWidth.Count), correction, isFirst, a7);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* output, float* correction, bool isFirst, TVector first, TVector second, TVector third)
    {
        Store(output, correction, isFirst, first);
        Store(output + TWidth.Count, correction == null ? null : correction + TWidth.Count, isFirst, second);
        Store(output + (2 * TWidth.Count), correction == null ? null : correction + (2 * TWidth.Count), isFirst, third);
    }

    // The first chain meets what was there before, corrected; the others join the first.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* output, float* correction, bool isFirst, TVector sum)
    {
        if (!isFirst)
        {
            sum = TWidth.Add(TWidth.Load(output), sum);
        }
        else if (correction != null)
        {
            sum = TWidth.MultiplyAdd(TWidth.Load(output), TWidth.Load(correction), sum);
        }

        TWidth.Store(sum, output);
    }
}
