using System;

namespace TreeAttention.Distributed;

/// <summary>Which numbers a storage type can hold, and the faults of those that it cannot.</summary>
internal static class StorageRange
{
    /// <summary>The fault of storing this element, or null when it may be stored.</summary>
    /// <param name="tensor">What messages call the tensor.</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="position">Position in the whole sequence.</param>
    /// <param name="head">Head.</param>
    /// <param name="dim">Dimension.</param>
    /// <param name="element">The element, exactly.</param>
    /// <param name="storage">What it shall be stored as.</param>
    /// <param name="policy">Whether NaN and infinities may be stored.</param>
    public static FaultException? FaultOf(
        string tensor, int batch, int position, int head, int dim, double element, ElementType storage, NonFinitePolicy policy)
    {
        string place = FormattableString.Invariant($"{tensor}[batch {batch}, position {position}, head {head}, dim {dim}]");
        if (!double.IsFinite(element))
        {
            string what = double.IsNaN(element) ? "NaN" : element > 0 ? "+inf" : "-inf";
            return policy == NonFinitePolicy.Propagate ? null : new FaultException(
                FaultCode.BadInput,
                $"{place} is {what}: attention over it is not a number. Repair the input, or let it through with --nan propagate.");
        }

        return !Overflows(element, storage) ? null : new FaultException(
            FaultCode.BadInput,
            FormattableString.Invariant($"{place} is {element:G9}, too large for {storage.ShortName()}, which ends at {Largest(storage):G9}. ")
            + (Overflows(element, ElementType.Float32)
                ? "Scale the tensor down: f32 is the widest storage type."
                : "Store keys and values with --dtype f32."));
    }

    /// <summary>The element is finite but rounds to infinity in the storage type.</summary>
    public static bool Overflows(double element, ElementType storage) =>
        double.IsFinite(element) && Math.Abs(element) >= RoundsToInfinityFrom(storage);

    private static double Largest(ElementType storage) => storage switch
    {
        ElementType.Float16 => (double)Half.MaxValue,
        ElementType.BFloat16 => Math.ScaleB(2 - Math.ScaleB(1, -7), 127),
        _ => float.MaxValue,
    };

    // Half a unit in the last place above the largest number: the tie goes to the even neighbour, which is infinity.
    private static double RoundsToInfinityFrom(ElementType storage) => storage switch
    {
        ElementType.Float16 => 65520,
        ElementType.BFloat16 => Math.ScaleB(2 - Math.ScaleB(1, -8), 127),
        _ => Math.ScaleB(2 - Math.ScaleB(1, -24), 127),
    };
}
