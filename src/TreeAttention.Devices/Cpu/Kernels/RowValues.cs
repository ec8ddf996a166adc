using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices;

/// <summary>Weighted sums of a block's values: output := output·correction + Σ weight·value.</summary>
/// <remarks>A block is summed in fresh registers before it meets the running output, so rounding grows with the root of the blocks.</remarks>
internal static unsafe class RowValues<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    /// <summary>Four rows of weights [4, <see cref="TileKernel.Block"/>], two vectors of each output at a time.</summary>
    /// <param name="weights">Weights; those of hidden keys are 0.</param>
    /// <param name="values">First value.</param>
    /// <param name="valueStride">Bytes from one value to the next.</param>
    /// <param name="count">Keys of the block.</param>
    /// <param name="outputs">[4, outputStride]; outputStride is a multiple of the vector's length.</param>
    /// <param name="outputStride">Floats from one row to the next.</param>
    /// <param name="correction">[4]</param>
    /// <param name="fetch">What will be read next.</param>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Four(
        float* weights, byte* values, nint valueStride, int count, float* outputs, int outputStride, float* correction,
        byte* fetch)
    {
        float* w1 = weights + TileKernel.Block;
        float* w2 = w1 + TileKernel.Block;
        float* w3 = w2 + TileKernel.Block;
        int step = 2 * TWidth.Count * TElement.Size;
        int at = 0;
        for (; at + (2 * TWidth.Count) <= outputStride; at += 2 * TWidth.Count)
        {
            TVector a0 = TWidth.Create(0f), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
            byte* value = values + (at * TElement.Size);
            for (int key = 0; key < count; key++)
            {
                TVector a = TElement.Load<TWidth, TVector>(value);
                TVector b = TElement.Load<TWidth, TVector>(value + (TWidth.Count * TElement.Size));
                value += valueStride;
                Prefetch(ref fetch, step);
                TVector w = TWidth.Create(weights[key]);
                a0 = TWidth.MultiplyAdd(w, a, a0);
                b0 = TWidth.MultiplyAdd(w, b, b0);
                w = TWidth.Create(w1[key]);
                a1 = TWidth.MultiplyAdd(w, a, a1);
                b1 = TWidth.MultiplyAdd(w, b, b1);
                w = TWidth.Create(w2[key]);
                a2 = TWidth.MultiplyAdd(w, a, a2);
                b2 = TWidth.MultiplyAdd(w, b, b2);
                w = TWidth.Create(w3[key]);
                a3 = TWidth.MultiplyAdd(w, a, a3);
                b3 = TWidth.MultiplyAdd(w, b, b3);
            }

            float* output = outputs + at;
            Add(output, correction[0], a0, b0);
            Add(output + outputStride, correction[1], a1, b1);
            Add(output + (2 * outputStride), correction[2], a2, b2);
            Add(output + (3 * outputStride), correction[3], a3, b3);
        }

        for (; at < outputStride; at += TWidth.Count)
        {
            for (int row = 0; row < 4; row++)
            {
                Column(weights + (row * TileKernel.Block), values + (at * TElement.Size), valueStride, count,
                    outputs + (row * outputStride) + at, correction[row]);
            }
        }
    }

    /// <summary>One row of weights, four vectors of its output at a time.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void One(
        float* weights, byte* values, nint valueStride, int count, float* output, int outputStride, float correction,
        byte* fetch)
    {
        int step = 4 * TWidth.Count * TElement.Size;
        int at = 0;
        for (; at + (4 * TWidth.Count) <= outputStride; at += 4 * TWidth.Count)
        {
            TVector a = TWidth.Create(0f), b = a, c = a, d = a;
            byte* value = values + (at * TElement.Size);
            for (int key = 0; key < count; key++)
            {
                TVector w = TWidth.Create(weights[key]);
                a = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value), a);
                b = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (TWidth.Count * TElement.Size)), b);
                c = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (2 * TWidth.Count * TElement.Size)), c);
                d = TWidth.MultiplyAdd(w, TElement.Load<TWidth, TVector>(value + (3 * TWidth.Count * TElement.Size)), d);
                value += valueStride;
                Prefetch(ref fetch, step);
            }

            Add(output + at, correction, a, b);
            Add(output + at + (2 * TWidth.Count), correction, c, d);
        }

        for (; at < outputStride; at += TWidth.Count)
        {
            Column(weights, values + (at * TElement.Size), valueStride, count, output + at, correction);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Add(float* output, float correction, TVector first, TVector second)
    {
        TVector by = TWidth.Create(correction);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output), by, first), output);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output + TWidth.Count), by, second), output + TWidth.Count);
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static void Column(float* weights, byte* value, nint valueStride, int count, float* output, float correction)
    {
        TVector sum = TWidth.Create(0f);
        for (int key = 0; key < count; key++)
        {
            sum = TWidth.MultiplyAdd(TWidth.Create(weights[key]), TElement.Load<TWidth, TVector>(value), sum);
            value += valueStride;
        }

        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(output), TWidth.Create(correction), sum), output);
    }

    // Spread over the loop, a line or more a key: together about as many bytes as the next block of keys has.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Prefetch(ref byte* fetch, int step)
    {
        if (Sse.IsSupported)
        {
            Sse.Prefetch0(fetch);
            if (step > 64)
            {
                Sse.Prefetch0(fetch + 64);
            }

            if (step > 128)
            {
                Sse.Prefetch0(fetch + 128);
                Sse.Prefetch0(fetch + 192);
            }

            fetch += step;
        }
    }
}
