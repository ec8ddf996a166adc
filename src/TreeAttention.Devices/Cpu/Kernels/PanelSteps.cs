using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices;

/// <summary>The vector steps between the two products of a panel: scores and weights are [keys][rows].</summary>
internal static unsafe class PanelSteps<TWidth, TVector, TElement>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
    where TElement : struct, IStoredElement
{
    // Finite stand-in for a maximum of -∞, so that -∞ - max stays -∞.
    private const float Lowest = -1e38f;

    /// <summary>Asks for bytes that will be read soon.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Prefetch(byte* from, nint bytes)
    {
        if (Sse.IsSupported)
        {
            for (nint at = 0; at < bytes; at += 64)
            {
                Sse.Prefetch1(from + at);
            }
        }
    }

    /// <summary>Rows of stored elements as fp32 rows without gaps.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Widen(byte* source, nint stride, int count, int elements, float* target)
    {
        TVector shift = TWidth.Create(TElement.Shift);
        for (int row = 0; row < count; row++)
        {
            for (int i = 0; i < elements; i += TWidth.Count)
            {
                TVector value = TElement.Load<TWidth, TVector>(source + (i * TElement.Size));
                TWidth.Store(TWidth.Multiply(value, shift), target + i);
            }

            source += stride;
            target += elements;
        }
    }

    /// <summary>score := cap·tanh(score / cap)</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Cap(float* scores, int count, float cap)
    {
        TVector by = TWidth.Create(cap);
        for (int i = 0; i < count; i += TWidth.Count)
        {
            TVector score = TWidth.Load(scores + i);
            TWidth.Store(TWidth.Multiply(by, VectorMath<TWidth, TVector>.Tanh(TWidth.Divide(score, by))), scores + i);
        }
    }

    /// <summary>Hides what lies outside each row's interval of indices.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Hide(float* scores, int width, int low, int high, int block, float* first, float* end)
    {
        TVector from = TWidth.Load(first);
        TVector to = TWidth.Load(end);
        for (int key = low; key < high; key++)
        {
            float* at = scores + (key * width);
            TWidth.Store(TWidth.KeepInside(TWidth.Load(at), TWidth.Create(block + key), from, to), at);
        }
    }

    /// <summary>Scores become weights e^(score - max); maximum and sum go on, and the correction says what older weights are worth now.</summary>
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
        TVector total = TWidth.Create(0f);
        for (int key = low; key < high; key++)
        {
            float* at = scores + (key * width);
            TVector weight = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(TWidth.Load(at), origin));
            total = TWidth.Add(total, weight);
            TWidth.Store(weight, at);
        }

        TVector fade = VectorMath<TWidth, TVector>.Exp(TWidth.Subtract(before, origin));
        TWidth.Store(fade, correction);
        TWidth.Store(TWidth.MultiplyAdd(TWidth.Load(sum), fade, total), sum);
        TWidth.Store(top, max);
    }
}
