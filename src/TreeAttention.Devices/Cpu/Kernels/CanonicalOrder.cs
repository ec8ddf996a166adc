using System.Runtime.CompilerServices;
using TreeAttention.Devices.Cpu.Vectors;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>The one sequence of operations of a query row and its keys that both kernels follow where results are reproducible.</summary>
/// <remarks>
/// A score is a chain of multiply-adds for each vector lane along the head dimension, and the tree of
/// <see cref="IVectorWidth{TVector}.Sums"/> over the lanes. Weights of a block add up lane by lane, key k to lane k mod n, and by halves over
/// the lanes. Values of a block are one chain over its keys, which then meets the running output. <see cref="RowKernel{TWidth, TVector, TElement}"/>
/// has lanes of a vector for this; here are the same chains and trees for panels, whose vectors run along the rows.
/// </remarks>
internal static unsafe class CanonicalOrder<TWidth, TVector>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    // Finite stand-in for a maximum of -∞, so that -∞ - max stays -∞.
    private const float Lowest = -1e38f;

    // Folds of a tree over up to 8 pairs of chains wait in so many levels.
    private const int Levels = 3;

    /// <summary>What older weights are worth when the maximum rises to a finite <paramref name="max"/>; exactly 1 where it stays.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static float Fade(float before, float max) => TWidth.First(VectorMath<TWidth, TVector>.Exp(TWidth.Create(before - max)));

    /// <summary>score := shift·e^(score - max) for a row's block; returns Σ e^(score - max).</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static float Exponentiate(float* scores, float max, float shift)
    {
        TVector top = TWidth.Create(max);
        TVector by = TWidth.Create(shift);
        TVector sum = TWidth.Create(0f);
        for (int i = 0; i < TileKernel.Block; i += TWidth.Count)
        {
            TVector weight = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(TWidth.Load(scores + i), top));
            sum = TWidth.Add(sum, weight);
            TWidth.Store(TWidth.Multiply(weight, by), scores + i);
        }

        return TWidth.SumByHalves(sum);
    }

    /// <summary>The lane of the head dimension whose chain is number <paramref name="chain"/> of a panel: neighbours meet first in the tree.</summary>
    internal static int LaneOf(int chain) => TWidth.Count == 8 ? chain : (chain / 2) + (chain % 2 * 8);

    /// <summary>Writes a panel's query, scaled, in the order in which the chains read it.</summary>
    /// <param name="query">[headDim]</param>
    /// <param name="headDim">Elements of the query.</param>
    /// <param name="scale">Factor.</param>
    /// <param name="panel">The query's column of [headDim][width].</param>
    /// <param name="width">Rows of the panel.</param>
    internal static void Arrange(float* query, int headDim, float scale, float* panel, int width)
    {
        for (int chain = 0; chain < TWidth.Count; chain++)
        {
            for (int i = LaneOf(chain); i < headDim; i += TWidth.Count, panel += width)
            {
                *panel = query[i] * scale;
            }
        }
    }

    /// <summary>Scores of four keys and a panel of three vectors, or of eight keys and a panel of one.</summary>
    /// <param name="width">Rows of the panel: one or three vectors.</param>
    /// <param name="keys">Keys of the block.</param>
    /// <param name="stride">Floats from one key to the next.</param>
    /// <param name="first">First key; those from <paramref name="count"/> on repeat the last.</param>
    /// <param name="count">Keys of the block.</param>
    /// <param name="headDim">Elements of a key.</param>
    /// <param name="queries">[headDim][width], as <see cref="Arrange"/> writes them.</param>
    /// <param name="scores">[keys][width]</param>
    [SkipLocalsInit] // the levels are written before they are read
    internal static void Multiply(int width, float* keys, nint stride, int first, int count, int headDim, float* queries, float* scores)
    {
        int each = width == TWidth.Count ? 4 : 2;
        float** rows = stackalloc float*[4];
        float* levels = stackalloc float[Levels * 6 * TWidth.Count];
        for (int done = 0; done < 2 * each; done += each, scores += each * width)
        {
            for (int key = 0; key < each; key++)
            {
                rows[key] = keys + (int.Min(first + done + key, count - 1) * stride);
            }

            if (each == 4)
            {
                FourByOne(rows, headDim, queries, scores, levels);
            }
            else
            {
                TwoByThree(rows, headDim, queries, scores, levels);
            }
        }
    }

    /// <summary>As <see cref="PanelSteps{TWidth, TVector, TElement}.Softmax"/>, in the canonical order.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Softmax(float* scores, int width, int low, int high, float* max, float* sum, float* correction)
    {
        TVector before = TWidth.Load(max);
        TVector top = before;
        for (int key = low; key < high; key++)
        {
            top = TWidth.Max(top, TWidth.Load(scores + (key * width)));
        }

        TVector origin = TWidth.Max(top, TWidth.Create(Lowest));
        for (int key = low; key < high; key++)
        {
            float* at = scores + (key * width);
            TWidth.Store(VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(TWidth.Load(at), origin)), at);
        }

        TVector fade = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(before, origin));
        TWidth.Store(fade, correction);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(sum), fade, Total(scores, width, low, high)), sum);
        TWidth.Store(top, max);
    }

    // The weights of a block, key k to lane k mod n, then by halves over the lanes.
    [SkipLocalsInit, MethodImpl(MethodImplOptions.AggressiveOptimization)] // totals are written before they are read
    private static TVector Total(float* weights, int width, int low, int high)
    {
        int lanes = TWidth.Count;
        float* totals = stackalloc float[lanes * lanes];
        for (int lane = 0; lane < lanes; lane++)
        {
            TVector total = TWidth.Create(0f);
            for (int key = lane; key < high; key += lanes)
            {
                total = key < low ? total : TWidth.Add(total, TWidth.Load(weights + (key * width)));
            }

            TWidth.Store(total, totals + (lane * lanes));
        }

        for (int half = lanes / 2; half > 0; half /= 2)
        {
            for (int lane = 0; lane < half; lane++)
            {
                float* at = totals + (lane * lanes);
                TWidth.Store(TWidth.Add(TWidth.Load(at), TWidth.Load(at + (half * lanes))), at);
            }
        }

        return TWidth.Load(totals);
    }

    // Two chains that meet first are made together; what they add up to waits in a level until its neighbour in the tree is there.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void TwoByThree(float** left, int headDim, float* right, float* output, float* levels)
    {
        float* r0 = left[0], r1 = left[1];
        int step = 3 * TWidth.Count;
        for (int pair = 0; pair < TWidth.Count / 2; pair++)
        {
            (int lane, int other) = (LaneOf(2 * pair), LaneOf((2 * pair) + 1) - LaneOf(2 * pair));
            float* last = right + ((nint)step * LengthOf(lane, headDim));
            float* next = last;
            float* end = last + ((nint)step * LengthOf(lane + other, headDim));
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0;
            TVector c0 = a0, c1 = a0, c2 = a0, d0 = a0, d1 = a0, d2 = a0;
            nint at = lane;
            for (; next < end; at += TWidth.Count)
            {
                TVector x = TWidth.Load(right);
                TVector y = TWidth.Load(right + TWidth.Count);
                TVector z = TWidth.Load(right + (2 * TWidth.Count));
                right += step;
                TVector l = TWidth.Create(r0[at]);
                a0 = TWidth.MultiplyAdd(l, x, a0);
                a1 = TWidth.MultiplyAdd(l, y, a1);
                a2 = TWidth.MultiplyAdd(l, z, a2);
                l = TWidth.Create(r1[at]);
                b0 = TWidth.MultiplyAdd(l, x, b0);
                b1 = TWidth.MultiplyAdd(l, y, b1);
                b2 = TWidth.MultiplyAdd(l, z, b2);
                x = TWidth.Load(next);
                y = TWidth.Load(next + TWidth.Count);
                z = TWidth.Load(next + (2 * TWidth.Count));
                next += step;
                l = TWidth.Create(r0[at + other]);
                c0 = TWidth.MultiplyAdd(l, x, c0);
                c1 = TWidth.MultiplyAdd(l, y, c1);
                c2 = TWidth.MultiplyAdd(l, z, c2);
                l = TWidth.Create(r1[at + other]);
                d0 = TWidth.MultiplyAdd(l, x, d0);
                d1 = TWidth.MultiplyAdd(l, y, d1);
                d2 = TWidth.MultiplyAdd(l, z, d2);
            }

            if (right < last)
            {
                TVector l = TWidth.Create(r0[at]);
                a0 = TWidth.MultiplyAdd(l, TWidth.Load(right), a0);
                a1 = TWidth.MultiplyAdd(l, TWidth.Load(right + TWidth.Count), a1);
                a2 = TWidth.MultiplyAdd(l, TWidth.Load(right + (2 * TWidth.Count)), a2);
                l = TWidth.Create(r1[at]);
                b0 = TWidth.MultiplyAdd(l, TWidth.Load(right), b0);
                b1 = TWidth.MultiplyAdd(l, TWidth.Load(right + TWidth.Count), b1);
                b2 = TWidth.MultiplyAdd(l, TWidth.Load(right + (2 * TWidth.Count)), b2);
            }

            (a0, a1, a2) = (TWidth.Add(a0, c0), TWidth.Add(a1, c1), TWidth.Add(a2, c2));
            (b0, b1, b2) = (TWidth.Add(b0, d0), TWidth.Add(b1, d1), TWidth.Add(b2, d2));
            right = end;
            float* held = levels;
            for (int bits = pair; (bits & 1) != 0; bits >>= 1, held += 6 * TWidth.Count)
            {
                a0 = TWidth.Add(TWidth.Load(held), a0);
                a1 = TWidth.Add(TWidth.Load(held + TWidth.Count), a1);
                a2 = TWidth.Add(TWidth.Load(held + (2 * TWidth.Count)), a2);
                b0 = TWidth.Add(TWidth.Load(held + (3 * TWidth.Count)), b0);
                b1 = TWidth.Add(TWidth.Load(held + (4 * TWidth.Count)), b1);
                b2 = TWidth.Add(TWidth.Load(held + (5 * TWidth.Count)), b2);
            }

            float* into = pair + 1 == TWidth.Count / 2 ? output : held;
            Store(into, a0, a1, a2);
            Store(into + (3 * TWidth.Count), b0, b1, b2);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void FourByOne(float** left, int headDim, float* right, float* output, float* levels)
    {
        float* r0 = left[0], r1 = left[1], r2 = left[2], r3 = left[3];
        for (int pair = 0; pair < TWidth.Count / 2; pair++)
        {
            (int lane, int other) = (LaneOf(2 * pair), LaneOf((2 * pair) + 1) - LaneOf(2 * pair));
            float* last = right + ((nint)TWidth.Count * LengthOf(lane, headDim));
            float* next = last;
            float* end = last + ((nint)TWidth.Count * LengthOf(lane + other, headDim));
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            nint at = lane;
            for (; next < end; at += TWidth.Count, right += TWidth.Count, next += TWidth.Count)
            {
                TVector x = TWidth.Load(right);
                TVector y = TWidth.Load(next);
                a0 = TWidth.MultiplyAdd(TWidth.Create(r0[at]), x, a0);
                a1 = TWidth.MultiplyAdd(TWidth.Create(r1[at]), x, a1);
                a2 = TWidth.MultiplyAdd(TWidth.Create(r2[at]), x, a2);
                a3 = TWidth.MultiplyAdd(TWidth.Create(r3[at]), x, a3);
                b0 = TWidth.MultiplyAdd(TWidth.Create(r0[at + other]), y, b0);
                b1 = TWidth.MultiplyAdd(TWidth.Create(r1[at + other]), y, b1);
                b2 = TWidth.MultiplyAdd(TWidth.Create(r2[at + other]), y, b2);
                b3 = TWidth.MultiplyAdd(TWidth.Create(r3[at + other]), y, b3);
            }

            if (right < last)
            {
                TVector x = TWidth.Load(right);
                a0 = TWidth.MultiplyAdd(TWidth.Create(r0[at]), x, a0);
                a1 = TWidth.MultiplyAdd(TWidth.Create(r1[at]), x, a1);
                a2 = TWidth.MultiplyAdd(TWidth.Create(r2[at]), x, a2);
                a3 = TWidth.MultiplyAdd(TWidth.Create(r3[at]), x, a3);
            }

            (a0, a1, a2, a3) = (TWidth.Add(a0, b0), TWidth.Add(a1, b1), TWidth.Add(a2, b2), TWidth.Add(a3, b3));
            right = end;
            float* held = levels;
            for (int bits = pair; (bits & 1) != 0; bits >>= 1, held += 4 * TWidth.Count)
            {
                a0 = TWidth.Add(TWidth.Load(held), a0);
                a1 = TWidth.Add(TWidth.Load(held + TWidth.Count), a1);
                a2 = TWidth.Add(TWidth.Load(held + (2 * TWidth.Count)), a2);
                a3 = TWidth.Add(TWidth.Load(held + (3 * TWidth.Count)), a3);
            }

            float* into = pair + 1 == TWidth.Count / 2 ? output : held;
            Store(into, a0, a1, a2);
            TWidth.Store(a3, into + (3 * TWidth.Count));
        }
    }

    // Elements of a lane: multiply-adds of its chain.
    private static int LengthOf(int lane, int headDim) => (headDim - lane + TWidth.Count - 1) / TWidth.Count;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Store(float* into, TVector first, TVector second, TVector third)
    {
        TWidth.Store(first, into);
        TWidth.Store(second, into + TWidth.Count);
        TWidth.Store(third, into + (2 * TWidth.Count));
    }
}
