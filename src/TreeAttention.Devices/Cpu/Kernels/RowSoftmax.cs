using System.Runtime.CompilerServices;
using TreeAttention.Devices.Cpu.Vectors;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>The softmax of one row over a block of <see cref="TileKernel.Block"/> scores.</summary>
internal static unsafe class RowSoftmax<TWidth, TVector>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>score := cap·tanh(score / cap); scores are finite.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static void Cap(float* scores, float cap)
    {
        TVector by = TWidth.Create(cap);
        for (int i = 0; i < TileKernel.Block; i += TWidth.Count)
        {
            TVector score = TWidth.Load(scores + i);
            TWidth.Store(TWidth.Multiply(by, VectorMath<TWidth, TVector>.Tanh(TWidth.Divide(score, by))), scores + i);
        }
    }

    /// <summary>Adds biases inside the interval; a key with -∞ is hidden, whatever its score.</summary>
    internal static void AddBias(float* scores, float* bias, int first, int end)
    {
        for (int i = first; i < end; i++)
        {
            scores[i] = float.IsNegativeInfinity(bias[i]) ? bias[i] : scores[i] + bias[i];
        }
    }

    /// <summary>The largest score.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    internal static float Largest(float* scores)
    {
        TVector largest = TWidth.Load(scores);
        for (int i = TWidth.Count; i < TileKernel.Block; i += TWidth.Count)
        {
            largest = TWidth.Max(largest, TWidth.Load(scores + i));
        }

        return TWidth.Largest(largest);
    }

    /// <summary>score := shift·e^(score - max); returns Σ e^(score - max).</summary>
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

        return TWidth.Sum(sum);
    }
}
