using System;

namespace TreeAttention.Distributed;

/// <summary>Brings scores of any size into fp32's range without changing their order: max and sum of a partial are fp32.</summary>
/// <remarks>
/// Below 2^30 a score stays a double: its distance from the rounded maximum is at most 32, so e^distance fits a sum. From
/// there on scores are rounded to fp32 first, so that their differences are exact; the spacing is 64 or more there, and
/// all that counts is which is largest. Beyond 2^120 the exponents up to 2^400 (no product of three fp32 numbers is
/// larger) are squeezed into what is left below 2^128, linear in the bits of the double: neighbours that differ by 5·10^-6 stay
/// apart. The edge takes a maximum out of that range again.
/// </remarks>
public static class ScoreRange
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
