using System;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
