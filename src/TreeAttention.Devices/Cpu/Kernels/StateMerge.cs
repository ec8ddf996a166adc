using System;
using System.Numerics;
using System.Runtime.InteropServices;

namespace TreeAttention.Devices.Cpu.Kernels;

/// <summary>Some rows of a partial, wherever they lie: of the one that was asked for, or of a worker's scratch memory.</summary>
/// <param name="Output">[rows, value_dim]</param>
/// <param name="Max">[rows]</param>
/// <param name="Sum">[rows]</param>
/// <param name="Rows">Number of rows.</param>
/// <param name="ValueDim">Elements of an output row.</param>
internal readonly unsafe record struct StateRows(nint Output, nint Max, nint Sum, int Rows, int ValueDim)
{
    private Span<float> Outputs => new((float*)Output, Rows * ValueDim);

    private Span<float> Maxima => new((float*)Max, Rows);

    private Span<float> Sums => new((float*)Sum, Rows);

    /// <summary>Rows of a partial from <paramref name="first"/> on.</summary>
    internal static StateRows Of(PartialAttention partial, int first, int rows) => new(
        partial.OutputRegion.Address + ((nint)first * partial.ValueDim * sizeof(float)),
        partial.MaxRegion.Address + ((nint)first * sizeof(float)),
        partial.SumRegion.Address + ((nint)first * sizeof(float)),
        rows,
        partial.ValueDim);

    /// <summary>Rows in plain memory of rows × (value_dim + 2) floats.</summary>
    internal static StateRows At(float* memory, int rows, int valueDim)
    {
        long outputs = (long)rows * valueDim;
        return new StateRows((nint)memory, (nint)(memory + outputs), (nint)(memory + outputs + rows), rows, valueDim);
    }

    /// <summary>Makes the rows the identity.</summary>
    internal void Clear()
    {
        Outputs.Clear();
        Maxima.Fill(float.NegativeInfinity);
        Sums.Clear();
    }

    /// <summary>Folds other rows in.</summary>
    internal void FoldFrom(StateRows other) =>
        PartialMerge.Fold(Outputs, Maxima, Sums, other.Outputs, other.Maxima, other.Sums, ValueDim);
}

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
