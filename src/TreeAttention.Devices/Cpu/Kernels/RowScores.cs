using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices;

/// <summary>Dot products of query rows with the keys of a block: scores [rows, <see cref="TileKernel.Block"/>].</summary>
/// <remarks>
/// Each score is one chain of fused multiply-adds per vector lane and one fixed tree over the lanes, in both shapes, so a
/// row's bits do not depend on its neighbours. Scores past the count repeat the last key's; the caller hides them.
/// </remarks>
internal static unsafe class RowScores<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    private const int Line = 64;

    /// <summary>Four rows, two keys at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Four(
        float* queries, int queryStride, byte* keys, nint keyStride, int count, int headDim, float* scores,
        byte* fetch, nint fetchStride)
    {
        int whole = headDim / TWidth.Count * TWidth.Count;
        float* q1 = queries + queryStride;
        float* q2 = q1 + queryStride;
        float* q3 = q2 + queryStride;
        for (int key = 0; key < count; key += 2)
        {
            Prefetch(fetch, key, 2, fetchStride);
            byte* left = keys + (key * keyStride);
            byte* right = keys + (Math.Min(key + 1, count - 1) * keyStride);
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            for (int i = 0; i < whole; i += TWidth.Count)
            {
                TVector a = TElement.Load<TWidth, TVector>(left + (i * TElement.Size));
                TVector b = TElement.Load<TWidth, TVector>(right + (i * TElement.Size));
                TVector q = TWidth.Load(queries + i);
                a0 = TWidth.MultiplyAdd(a, q, a0);
                b0 = TWidth.MultiplyAdd(b, q, b0);
                q = TWidth.Load(q1 + i);
                a1 = TWidth.MultiplyAdd(a, q, a1);
                b1 = TWidth.MultiplyAdd(b, q, b1);
                q = TWidth.Load(q2 + i);
                a2 = TWidth.MultiplyAdd(a, q, a2);
                b2 = TWidth.MultiplyAdd(b, q, b2);
                q = TWidth.Load(q3 + i);
                a3 = TWidth.MultiplyAdd(a, q, a3);
                b3 = TWidth.MultiplyAdd(b, q, b3);
            }

            if (whole < headDim)
            {
                TVector a = Tail(left, whole, headDim);
                TVector b = Tail(right, whole, headDim);
                a0 = TWidth.MultiplyAdd(a, TWidth.Load(queries + whole), a0);
                b0 = TWidth.MultiplyAdd(b, TWidth.Load(queries + whole), b0);
                a1 = TWidth.MultiplyAdd(a, TWidth.Load(q1 + whole), a1);
                b1 = TWidth.MultiplyAdd(b, TWidth.Load(q1 + whole), b1);
                a2 = TWidth.MultiplyAdd(a, TWidth.Load(q2 + whole), a2);
                b2 = TWidth.MultiplyAdd(b, TWidth.Load(q2 + whole), b2);
                a3 = TWidth.MultiplyAdd(a, TWidth.Load(q3 + whole), a3);
                b3 = TWidth.MultiplyAdd(b, TWidth.Load(q3 + whole), b3);
            }

            Vector256<float> sums = TWidth.Sums(a0, b0, a1, b1, a2, b2, a3, b3);
            Vector256<double> pairs = sums.AsDouble();
            *(double*)(scores + key) = pairs[0];
            *(double*)(scores + TileKernel.Block + key) = pairs[1];
            *(double*)(scores + (2 * TileKernel.Block) + key) = pairs[2];
            *(double*)(scores + (3 * TileKernel.Block) + key) = pairs[3];
        }
    }

    /// <summary>One row, eight keys at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void One(
        float* query, byte* keys, nint keyStride, int count, int headDim, float* scores, byte* fetch, nint fetchStride)
    {
        int whole = headDim / TWidth.Count * TWidth.Count;
        for (int key = 0; key < count; key += 8)
        {
            Prefetch(fetch, key, 8, fetchStride);
            byte* k0 = keys + (key * keyStride);
            byte* k1 = keys + (Math.Min(key + 1, count - 1) * keyStride);
            byte* k2 = keys + (Math.Min(key + 2, count - 1) * keyStride);
            byte* k3 = keys + (Math.Min(key + 3, count - 1) * keyStride);
            byte* k4 = keys + (Math.Min(key + 4, count - 1) * keyStride);
            byte* k5 = keys + (Math.Min(key + 5, count - 1) * keyStride);
            byte* k6 = keys + (Math.Min(key + 6, count - 1) * keyStride);
            byte* k7 = keys + (Math.Min(key + 7, count - 1) * keyStride);
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            for (int i = 0; i < whole; i += TWidth.Count)
            {
                TVector q = TWidth.Load(query + i);
                nint at = (nint)i * TElement.Size;
                a0 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k0 + at), q, a0);
                a1 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k1 + at), q, a1);
                a2 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k2 + at), q, a2);
                a3 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k3 + at), q, a3);
                a4 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k4 + at), q, a4);
                a5 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k5 + at), q, a5);
                a6 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k6 + at), q, a6);
                a7 = TWidth.MultiplyAdd(TElement.Load<TWidth, TVector>(k7 + at), q, a7);
            }

            if (whole < headDim)
            {
                TVector q = TWidth.Load(query + whole);
                a0 = TWidth.MultiplyAdd(Tail(k0, whole, headDim), q, a0);
                a1 = TWidth.MultiplyAdd(Tail(k1, whole, headDim), q, a1);
                a2 = TWidth.MultiplyAdd(Tail(k2, whole, headDim), q, a2);
                a3 = TWidth.MultiplyAdd(Tail(k3, whole, headDim), q, a3);
                a4 = TWidth.MultiplyAdd(Tail(k4, whole, headDim), q, a4);
                a5 = TWidth.MultiplyAdd(Tail(k5, whole, headDim), q, a5);
                a6 = TWidth.MultiplyAdd(Tail(k6, whole, headDim), q, a6);
                a7 = TWidth.MultiplyAdd(Tail(k7, whole, headDim), q, a7);
            }

            TWidth.Sums(a0, a1, a2, a3, a4, a5, a6, a7).Store(scores + key);
        }
    }

    // What follows the key may be another head's NaN: it is cut off, not multiplied by zero.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static TVector Tail(byte* key, int whole, int headDim) =>
        TWidth.KeepFirst(TElement.Load<TWidth, TVector>(key + (whole * TElement.Size)), headDim - whole);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(byte* fetch, int first, int count, nint stride)
    {
        if (Sse.IsSupported && fetch != null)
        {
            byte* from = fetch + (first * stride);
            for (nint at = 0; at < count * stride; at += Line)
            {
                Sse.Prefetch0(from + at);
            }
        }
    }
}
