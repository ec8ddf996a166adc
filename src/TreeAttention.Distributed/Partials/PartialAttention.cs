using System;
using System.Globalization;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention;

/// <summary>Attention over one set of keys: per query row a normalised output, the largest score, and Σ e^(score - max).</summary>
/// <remarks>
/// One row per batch, head, query, in that order. Partials over disjoint key sets are a commutative monoid under
/// <see cref="MergeFrom"/>; its identity is the empty set (0, -∞, 0). That law alone makes one device, a ring and a tree
/// agree. Scores are scaled, capped and biased, in natural units; max and sum stay apart until the edge, because a rounded
/// log-sum-exp loses the sum when scores are large. A sink never enters a partial.
/// The state lies in one region: output [rows, value_dim], then max [rows], then sum [rows], all fp32.
/// </remarks>
public sealed class PartialAttention
{
    /// <summary>A state of <paramref name="rows"/> × <paramref name="valueDim"/> that lies in <paramref name="region"/>; the region is not cleared.</summary>
    /// <exception cref="ShapeMismatchException">The region is not of <see cref="FloatsFor"/> elements.</exception>
    internal PartialAttention(Region region, int rows, int valueDim)
    {
        if (region.Type != ElementType.Float32 || region.Count != FloatsFor(rows, valueDim))
        {
            throw new ShapeMismatchException(
                $"A partial of {rows} rows × {valueDim} takes {FloatsFor(rows, valueDim)} floats, not {region.Count} × {region.Type}.");
        }

        Region = region;
        Rows = rows;
        ValueDim = valueDim;
        OutputRegion = region.Slice(0, (long)rows * valueDim);
        MaxRegion = region.Slice((long)rows * valueDim, rows);
        SumRegion = region.Slice((long)rows * (valueDim + 1), rows);
    }

    /// <summary>The whole state, as it travels.</summary>
    internal Region Region { get; }

    /// <summary>Query rows: batch × heads × queries.</summary>
    public int Rows { get; }

    /// <summary>Elements of an output row.</summary>
    public int ValueDim { get; }

    /// <summary>Its size and place: <c>64 rows of 128 in host memory</c>.</summary>
    public override string ToString() => string.Create(
        CultureInfo.InvariantCulture, $"{Rows} rows of {ValueDim} in {(Region.Place == MemoryPlace.Host ? "host" : "device")} memory");

    /// <summary>[rows, value_dim]</summary>
    internal Region OutputRegion { get; }

    /// <summary>[rows]</summary>
    internal Region MaxRegion { get; }

    /// <summary>[rows]</summary>
    internal Region SumRegion { get; }

    /// <summary>[rows, value_dim] normalised output, in host memory.</summary>
    public Span<float> Output => OutputRegion.AsSpan<float>();

    /// <summary>[rows] largest score; -∞ where no key was seen.</summary>
    public Span<float> Max => MaxRegion.AsSpan<float>();

    /// <summary>[rows] Σ e^(score - max); 0 where no key was seen.</summary>
    public Span<float> Sum => SumRegion.AsSpan<float>();

    /// <summary>Floats of a state: rows × (value_dim + 2).</summary>
    public static long FloatsFor(int rows, int valueDim) => (long)rows * (valueDim + 2);

    /// <summary>Makes this the identity: no key seen.</summary>
    public void Clear()
    {
        Output.Clear();
        Max.Fill(float.NegativeInfinity);
        Sum.Clear();
    }

    /// <summary>Folds <paramref name="other"/> in, as if one set had held the keys of both. a.MergeFrom(b) and b.MergeFrom(a) give the same bits.</summary>
    /// <exception cref="ShapeMismatchException">The two partials are not of the same shape.</exception>
    public void MergeFrom(PartialAttention other)
    {
        if (Rows != other.Rows || ValueDim != other.ValueDim)
        {
            throw new ShapeMismatchException(
                $"Cannot merge a partial of {other.Rows} rows × {other.ValueDim} into one of {Rows} rows × {ValueDim}: both must cover "
                + $"the same queries. Start every rank with the same query tensor and {Setting.ValueDim}.");
        }

        PartialMerge.Fold(Output, Max, Sum, other.Output, other.Max, other.Sum, ValueDim);
    }
}

/// <summary>Brings scores of any size into fp32's range without changing their order: max and sum of a partial are fp32.</summary>
/// <remarks>
/// Below 2^30 a score stays a double: its distance from the rounded maximum is at most 32, so e^distance fits a sum. From
/// there on scores are rounded to fp32 first, so that their differences are exact; the spacing is 64 or more there, and
/// all that counts is which is largest. Beyond 2^120 the exponents up to 2^400 (no product of three fp32 numbers is
/// larger) are squeezed into what is left below 2^128, linear in the bits of the double: neighbours that differ by 5·10^-6 stay
/// apart. The edge takes a maximum out of that range again.
/// </remarks>
internal static class ScoreRange
{
    /// <summary>Scores below this magnitude are left as they are.</summary>
    public const double Untouched = 1 << 30;

    private const double Squeezed = 1329227995784915872903807060280344576d; // 2^120
    private const double Largest = 2.5822498780869086e120; // 2^400
    private const float Lowest = (float)Squeezed;
    private const int Steps = (7 << 23) + (7 << 20); // 7.875 binades of floats from 2^120 on

    /// <summary>The score as max and sum may hold it. NaN and ±∞ stay what they are.</summary>
    public static double Settle(double score)
    {
        double magnitude = Math.Abs(score);
        if (magnitude < Untouched || !double.IsFinite(score))
        {
            return score;
        }

        return magnitude <= Squeezed ? (float)score : Math.CopySign(Squeeze(magnitude), score);
    }

    /// <summary>The score that a partial's maximum stands for, to 3·10^-6 of it beyond 2^120. NaN and ±∞ stay what they are.</summary>
    public static double Restore(float max)
    {
        float magnitude = MathF.Abs(max);
        if (magnitude <= Lowest || !float.IsFinite(max))
        {
            return max;
        }

        double step = BitConverter.SingleToInt32Bits(magnitude) - BitConverter.SingleToInt32Bits(Lowest) + 0.5;
        double bits = Bits(Squeezed) + (step / Steps * (Bits(Largest) - Bits(Squeezed)));
        return Math.CopySign(BitConverter.Int64BitsToDouble((long)bits), max);
    }

    private static float Squeeze(double magnitude)
    {
        double share = (Bits(Math.Min(magnitude, Largest)) - Bits(Squeezed)) / (Bits(Largest) - Bits(Squeezed));
        return BitConverter.Int32BitsToSingle(BitConverter.SingleToInt32Bits(Lowest) + (int)(share * Steps));
    }

    private static double Bits(double number) => BitConverter.DoubleToInt64Bits(number);
}
