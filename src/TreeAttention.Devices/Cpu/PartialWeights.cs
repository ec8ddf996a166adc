using System;
using System.Numerics;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Between a normalised state and the numerators and denominators that reductions add.</summary>
internal static class PartialWeights
{
    /// <summary>numerator = output·w and denominator = w with w = unit·sum·e^(max - top).</summary>
    internal static void Weigh(
        PartialAttention partial, ReadOnlySpan<float> top, float unit, Span<float> numerator, Span<float> denominator)
    {
        int width = partial.ValueDim;
        ReadOnlySpan<float> max = partial.Max;
        ReadOnlySpan<float> sum = partial.Sum;
        ReadOnlySpan<float> output = partial.Output;
        for (int row = 0; row < partial.Rows; row++)
        {
            // Equal maxima, infinite ones too, weigh a sum as it is; where no key was seen there is nothing to weigh.
            float weight = sum[row] == 0 ? 0 : unit * sum[row] * (max[row] == top[row] ? 1 : MathF.Exp(max[row] - top[row]));
            denominator[row] = weight;
            Scale(output.Slice(row * width, width), weight, numerator.Slice(row * width, width));
        }
    }

    /// <summary>output = numerator / denominator, max = top, sum = denominator / unit; the identity where the denominator is 0.</summary>
    internal static void Unweigh(
        ReadOnlySpan<float> top, float unit, ReadOnlySpan<float> numerator, ReadOnlySpan<float> denominator, PartialAttention into)
    {
        int width = into.ValueDim;
        Span<float> output = into.Output;
        for (int row = 0; row < into.Rows; row++)
        {
            bool isEmpty = denominator[row] == 0;
            into.Max[row] = isEmpty ? float.NegativeInfinity : top[row];
            into.Sum[row] = denominator[row] / unit;
            if (isEmpty)
            {
                output.Slice(row * width, width).Clear();
            }
            else
            {
                Divide(numerator.Slice(row * width, width), denominator[row], output.Slice(row * width, width));
            }
        }
    }

    private static void Scale(ReadOnlySpan<float> from, float factor, Span<float> to)
    {
        ReadOnlySpan<Vector<float>> vectors = MemoryMarshal.Cast<float, Vector<float>>(from);
        Span<Vector<float>> targets = MemoryMarshal.Cast<float, Vector<float>>(to);
        for (int i = 0; i < vectors.Length && i < targets.Length; i++)
        {
            targets[i] = vectors[i] * factor;
        }

        for (int i = vectors.Length * Vector<float>.Count; i < from.Length; i++)
        {
            to[i] = from[i] * factor;
        }
    }

    private static void Divide(ReadOnlySpan<float> from, float divisor, Span<float> to)
    {
        ReadOnlySpan<Vector<float>> vectors = MemoryMarshal.Cast<float, Vector<float>>(from);
        Span<Vector<float>> targets = MemoryMarshal.Cast<float, Vector<float>>(to);
        var by = new Vector<float>(divisor);
        for (int i = 0; i < vectors.Length && i < targets.Length; i++)
        {
            targets[i] = vectors[i] / by;
        }

        for (int i = vectors.Length * Vector<float>.Count; i < from.Length; i++)
        {
            to[i] = from[i] / divisor;
        }
    }
}
