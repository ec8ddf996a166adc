using System;

namespace TreeAttention;

/// <summary>Rotary position embedding (arXiv 2104.09864): which dimensions turn, in which pairs, how fast.</summary>
/// <param name="Dim">Dimensions that turn, the first of each head: even, at most head_dim.</param>
/// <param name="Base">θ: pair t turns by position · θ^(-2t / <paramref name="Dim"/>).</param>
/// <param name="Interleaved">Pairs are (2t, 2t + 1), as in GPT-J and flash-attn's default; else (t, t + Dim/2), as in GPT-NeoX and Llama.</param>
public sealed record RotaryOptions(int Dim, double Base = 10000, bool Interleaved = false)
{
    /// <summary>Slows low frequencies down for long contexts; none when null.</summary>
    public Llama3Scaling? Scaling { get; init; }

    /// <summary>[dim / 2] how much each pair turns from one position to the next, in radians.</summary>
    public double[] Frequencies()
    {
        double[] frequencies = new double[Dim / 2];
        for (int pair = 0; pair < frequencies.Length; pair++)
        {
            double frequency = Math.Pow(Base, -2.0 * pair / Dim);
            frequencies[pair] = Scaling?.Scale(frequency) ?? frequency;
        }

        return frequencies;
    }

    /// <summary>Throws when the options do not fit heads of <paramref name="headDim"/>.</summary>
    /// <exception cref="ShapeMismatchException">The dimension is odd or does not fit; base or scaling make no frequencies.</exception>
    internal void Validate(int headDim)
    {
        if (Dim < 0 || Dim % 2 != 0 || Dim > headDim)
        {
            throw new ShapeMismatchException($"Rotary dimension {Dim} must be even and between 0 and the head dimension, {headDim}.");
        }

        if (!(Base > 0) || !double.IsFinite(Base))
        {
            throw new ShapeMismatchException($"Rotary base {Base} must be a positive number.");
        }

        Scaling?.Validate();
    }
}

/// <summary>Llama 3's scaling of rotary frequencies (<c>rope_type llama3</c> of Hugging Face transformers).</summary>
/// <remarks>
/// Wavelengths longer than original / low turn <paramref name="Factor"/> times slower, shorter than original / high as ever, and
/// between the two the frequency is interpolated linearly in original / wavelength.
/// </remarks>
/// <param name="Factor">How much slower: 8 in Llama 3.1.</param>
/// <param name="LowFrequencyFactor">1 in Llama 3.1.</param>
/// <param name="HighFrequencyFactor">4 in Llama 3.1.</param>
/// <param name="OriginalContext">Positions of the first training: 8192 in Llama 3.1.</param>
public sealed record Llama3Scaling(double Factor, double LowFrequencyFactor, double HighFrequencyFactor, int OriginalContext)
{
    internal double Scale(double frequency)
    {
        double wavelengths = OriginalContext * frequency / (2 * Math.PI);
        if (wavelengths < LowFrequencyFactor)
        {
            return frequency / Factor;
        }

        if (wavelengths > HighFrequencyFactor)
        {
            return frequency;
        }

        double share = (wavelengths - LowFrequencyFactor) / (HighFrequencyFactor - LowFrequencyFactor);
        return ((1 - share) * frequency / Factor) + (share * frequency);
    }

    internal void Validate()
    {
        if (!(Factor >= 1) || !(LowFrequencyFactor > 0) || !(HighFrequencyFactor > LowFrequencyFactor) || OriginalContext < 1)
        {
            throw new ShapeMismatchException(
                $"Rotary scaling {Factor},{LowFrequencyFactor},{HighFrequencyFactor},{OriginalContext}: the factor must be at least 1, the low "
                + "frequency factor positive and below the high one, the original context at least 1.");
        }
    }
}
