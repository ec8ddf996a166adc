using System;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Verification;

/// <summary>Rotary embedding of a whole tensor in double precision: what rotated keys and queries are judged by.</summary>
internal static class ReferenceRotary
{
    /// <summary>A rotated copy [batch, length, heads, dim] of float64 elements; whoever gets the memory frees it.</summary>
    /// <param name="tensor">[batch, length, heads, dim], any strides, any floating-point type.</param>
    /// <param name="options">Which dimensions turn, and how.</param>
    /// <param name="positionOf">Position of an index of the length axis.</param>
    /// <param name="rotated">The copy.</param>
    public static HostMemory Rotate(TensorView tensor, RotaryOptions options, Func<int, int> positionOf, out TensorView rotated)
    {
        var memory = new HostMemory(tensor.Count * sizeof(double), ElementType.Float64);
        rotated = new TensorView(tensor.Name, memory.Region.Address, ElementType.Float64, tensor.Shape);
        var rows = new TensorNumbers(tensor);
        (long length, long heads, int dim) = (tensor.Shape[1], tensor.Shape[2], (int)tensor.Shape[3]);
        var turns = new (double Sine, double Cosine)[options.Dim / 2];
        for (long token = 0; token < tensor.Shape[0] * length; token++)
        {
            (int batch, int index) = ((int)(token / length), (int)(token % length));
            for (int pair = 0; pair < turns.Length; pair++)
            {
                turns[pair] = Math.SinCos(positionOf(index) * FrequencyOf(options, pair));
            }

            for (int head = 0; head < heads; head++)
            {
                Span<double> row = memory.Region.Slice(((token * heads) + head) * dim, dim).AsSpan<double>();
                rows.Read(batch, index, head, row);
                Turn(row, turns, options.Interleaved);
            }
        }

        return memory;
    }

    // Radians from one position to the next. Scaling as rope_type llama3: wavelengths beyond context / low are `factor` times as
    // long, those below context / high stay, and between the two the frequency is a mean that is linear in context / wavelength.
    private static double FrequencyOf(RotaryOptions options, int pair)
    {
        double frequency = Math.Pow(options.Base, -2.0 * pair / options.Dim);
        if (options.Scaling is not { } scaling)
        {
            return frequency;
        }

        double turnsInContext = scaling.OriginalContext * frequency / (2 * Math.PI);
        double width = scaling.HighFrequencyFactor - scaling.LowFrequencyFactor;
        double kept = Math.Clamp((turnsInContext - scaling.LowFrequencyFactor) / width, 0, 1);
        return ((1 - kept) * frequency / scaling.Factor) + (kept * frequency);
    }

    private static void Turn(Span<double> row, ReadOnlySpan<(double Sine, double Cosine)> turns, bool isInterleaved)
    {
        for (int pair = 0; pair < turns.Length; pair++)
        {
            ref double a = ref row[isInterleaved ? 2 * pair : pair];
            ref double b = ref row[isInterleaved ? (2 * pair) + 1 : turns.Length + pair];
            (double sine, double cosine) = turns[pair];
            (a, b) = ((a * cosine) - (b * sine), (b * cosine) + (a * sine));
        }
    }
}
