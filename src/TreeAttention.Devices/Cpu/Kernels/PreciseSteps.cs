using System;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>The vector steps of the precise kernel: doubles, one row at a time, over the keys of a block that the row sees.</summary>
internal static unsafe class PreciseSteps<TElement>
    where TElement : struct, IStoredElement
{
    /// <summary>Rows of stored elements as rows of doubles, filled up with zeros.</summary>
    /// <param name="source">First element.</param>
    /// <param name="stride">Bytes from one row to the next.</param>
    /// <param name="count">Rows.</param>
    /// <param name="elements">Elements of a row.</param>
    /// <param name="target">[count, targetStride]</param>
    /// <param name="targetStride">A multiple of eight.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Widen(byte* source, nint stride, int count, int elements, double* target, int targetStride)
    {
        for (int row = 0; row < count; row++)
        {
            for (int i = 0; i < elements; i += Vector256<float>.Count)
            {
                (Vector256<double> lower, Vector256<double> upper) = Vector256.Widen(TElement.LoadExact(source + (i * TElement.Size)));
                lower.Store(target + i);
                upper.Store(target + i + Vector256<double>.Count);
            }

            for (int i = elements; i < targetStride; i++)
            {
                target[i] = 0;
            }

            source += stride;
            target += targetStride;
        }
    }

    /// <summary>Dot products with the seen keys, eight at a time; scores has room for seven more than there are.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Dots(double* query, double* keys, int stride, ReadOnlySpan<int> seen, int count, Span<double> scores)
    {
        double** k = stackalloc double*[8];
        for (int n = 0; n < count; n += 8)
        {
            for (int i = 0; i < 8; i++)
            {
                k[i] = keys + ((long)seen[Math.Min(n + i, count - 1)] * stride);
            }

            double* k0 = k[0], k1 = k[1], k2 = k[2], k3 = k[3], k4 = k[4], k5 = k[5], k6 = k[6], k7 = k[7];
            Vector256<double> a0 = Vector256<double>.Zero, a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
            for (int i = 0; i < stride; i += Vector256<double>.Count)
            {
                var q = Vector256.Load(query + i);
                a0 = Vector256.FusedMultiplyAdd(Vector256.Load(k0 + i), q, a0);
                a1 = Vector256.FusedMultiplyAdd(Vector256.Load(k1 + i), q, a1);
                a2 = Vector256.FusedMultiplyAdd(Vector256.Load(k2 + i), q, a2);
                a3 = Vector256.FusedMultiplyAdd(Vector256.Load(k3 + i), q, a3);
                a4 = Vector256.FusedMultiplyAdd(Vector256.Load(k4 + i), q, a4);
                a5 = Vector256.FusedMultiplyAdd(Vector256.Load(k5 + i), q, a5);
                a6 = Vector256.FusedMultiplyAdd(Vector256.Load(k6 + i), q, a6);
                a7 = Vector256.FusedMultiplyAdd(Vector256.Load(k7 + i), q, a7);
            }

            (scores[n], scores[n + 1], scores[n + 2], scores[n + 3]) = (Vector256.Sum(a0), Vector256.Sum(a1), Vector256.Sum(a2), Vector256.Sum(a3));
            (scores[n + 4], scores[n + 5], scores[n + 6], scores[n + 7]) = (Vector256.Sum(a4), Vector256.Sum(a5), Vector256.Sum(a6), Vector256.Sum(a7));
        }
    }

    /// <summary>The largest of the scores and <paramref name="before"/>, rounded to fp32 as a partial holds it; NaN if one is. Fills up the last vector with -∞.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static double Largest(Span<double> scores, int count, double before)
    {
        scores.Slice(count, -count & (Vector256<double>.Count - 1)).Fill(double.NegativeInfinity);
        var largest = Vector256.Create(before);
        for (int n = 0; n < count; n += Vector256<double>.Count)
        {
            largest = Vector256.Max(largest, Vector256.LoadUnsafe(ref scores[n]));
        }

        return (float)Math.Max(Math.Max(largest[0], largest[1]), Math.Max(largest[2], largest[3]));
    }

    /// <summary>score := e^(score - top); returns their sum.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static double Exponentiate(Span<double> scores, int count, double top)
    {
        Vector256<double> sum = Vector256<double>.Zero;
        for (int n = 0; n < count; n += Vector256<double>.Count)
        {
            var weight = Vector256.Exp(Vector256.LoadUnsafe(ref scores[n]) - Vector256.Create(top));
            weight.StoreUnsafe(ref scores[n]);
            sum += weight;
        }

        return Vector256.Sum(sum);
    }

    /// <summary>output := output·correction + Σ weight·value; the stride of values and output is a multiple of eight.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void AddValues(
        ReadOnlySpan<double> weights, ReadOnlySpan<int> seen, int count, double* values, int stride, double* output, double correction)
    {
        var by = Vector256.Create(correction);
        int at = 0;
        for (; at + 32 <= stride; at += 32)
        {
            Vector256<double> a0 = Vector256.Load(output + at) * by, a1 = Vector256.Load(output + at + 4) * by;
            Vector256<double> a2 = Vector256.Load(output + at + 8) * by, a3 = Vector256.Load(output + at + 12) * by;
            Vector256<double> a4 = Vector256.Load(output + at + 16) * by, a5 = Vector256.Load(output + at + 20) * by;
            Vector256<double> a6 = Vector256.Load(output + at + 24) * by, a7 = Vector256.Load(output + at + 28) * by;
            for (int n = 0; n < count; n++)
            {
                double* value = values + ((long)seen[n] * stride) + at;
                var weight = Vector256.Create(weights[n]);
                a0 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value), a0);
                a1 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 4), a1);
                a2 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 8), a2);
                a3 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 12), a3);
                a4 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 16), a4);
                a5 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 20), a5);
                a6 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 24), a6);
                a7 = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 28), a7);
            }

            a0.Store(output + at);
            a1.Store(output + at + 4);
            a2.Store(output + at + 8);
            a3.Store(output + at + 12);
            a4.Store(output + at + 16);
            a5.Store(output + at + 20);
            a6.Store(output + at + 24);
            a7.Store(output + at + 28);
        }

        for (; at < stride; at += 8)
        {
            Vector256<double> lower = Vector256.Load(output + at) * by;
            Vector256<double> upper = Vector256.Load(output + at + 4) * by;
            for (int n = 0; n < count; n++)
            {
                double* value = values + ((long)seen[n] * stride) + at;
                var weight = Vector256.Create(weights[n]);
                lower = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value), lower);
                upper = Vector256.FusedMultiplyAdd(weight, Vector256.Load(value + 4), upper);
            }

            lower.Store(output + at);
            upper.Store(output + at + 4);
        }
    }
}
