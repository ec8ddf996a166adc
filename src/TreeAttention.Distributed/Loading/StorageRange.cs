using System;
using System.Globalization;

namespace TreeAttention.Distributed;

/// <summary>Which numbers a storage type can hold, and the faults of those that it cannot.</summary>
internal static class StorageRange
{
    /// <summary>The largest number that rounds to 448, the largest of f8e4m3: halfway to 480, which its NaN stands for.</summary>
    public const float LargestRoundedToE4M3 = 464;

    private static readonly CultureInfo _invariant = CultureInfo.InvariantCulture;

    /// <summary>The fault of storing this element, or null when it may be stored.</summary>
    /// <param name="tensor">What messages call the tensor.</param>
    /// <param name="batch">Batch row.</param>
    /// <param name="position">Position in the whole sequence.</param>
    /// <param name="head">Head.</param>
    /// <param name="dim">Dimension.</param>
    /// <param name="element">The element, exactly.</param>
    /// <param name="storage">What it shall be stored as.</param>
    /// <param name="policy">Whether NaN and infinities may be stored. f8e4m3 has no infinity, so none may there.</param>
    /// <param name="scale">What the stored element is to be multiplied by.</param>
    public static FaultException? FaultOf(
        string tensor, int batch, int position, int head, int dim, double element, ElementType storage, NonFinitePolicy policy,
        float scale = 1f)
    {
        string place = FormattableString.Invariant($"{tensor}[batch {batch}, position {position}, head {head}, dim {dim}]");
        if (!double.IsFinite(element))
        {
            string what = double.IsNaN(element) ? "NaN" : element > 0 ? "+inf" : "-inf";
            bool hasNone = storage == ElementType.Float8E4M3 && double.IsInfinity(element);
            return policy == NonFinitePolicy.Propagate && !hasNone ? null : new FaultException(
                FaultCode.BadInput,
                policy == NonFinitePolicy.Error
                    ? $"{place} is {what}: attention over it is not a number. Repair the input, or let it through with --nan propagate."
                    : $"{place} is {what}, and f8e4m3 has no infinity. Repair the input, or store keys and values with --dtype bf16.");
        }

        return !Overflows(element, storage, scale) ? null : new FaultException(
            FaultCode.BadInput, $"{place} {WhyTooLarge(element, storage, scale, $"--{tensor}-scale")}");
    }

    // Elements of f8e4m3 are compared as they are stored, by the division that stores them.
    internal static bool Overflows(double element, ElementType storage, float scale) => double.IsFinite(element) && storage switch
    {
        ElementType.Float8E4M3 => Math.Abs(element) / scale > LargestRoundedToE4M3,
        _ => Math.Abs(element) >= RoundsToInfinityFrom(storage),
    };

    private static string WhyTooLarge(double element, ElementType storage, float scale, string scaleOption)
    {
        string limit = storage == ElementType.Float8E4M3
            ? string.Create(_invariant, $"is {element:G9}, too large for f8e4m3 with a scale of {scale:G9}, which ends at {Float8E4M3.Largest * (double)scale:G9}. ")
            : string.Create(_invariant, $"is {element:G9}, too large for {storage.ShortName()}, which ends at {Largest(storage):G9}. ");
        string wayOut = Overflows(element, ElementType.Float32, 1f) ? "Scale the tensor down: f32 is the widest storage type."
            : storage == ElementType.Float8E4M3 ? $"Give a larger {scaleOption}, or store keys and values with --dtype bf16."
            : "Store keys and values with --dtype f32.";
        return limit + wayOut;
    }

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
