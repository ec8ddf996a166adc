using System.Runtime.CompilerServices;

namespace TreeAttention.Devices.Cpu.Vectors;

/// <summary>Exponential and hyperbolic tangent of fp32 vectors, relative error below 2·10^-7.</summary>
internal static class VectorMath<TWidth, TVector>
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>e^x for x &lt;= 88: exactly 1 at 0, and exactly 0 from -87.7 down to -∞.</summary>
    /// <remarks>Cody-Waite reduction by ln 2 in two parts and the polynomial of Cephes' expf.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Exp(TVector x)
    {
        x = TWidth.Max(x, TWidth.Create(-88f));
        TVector shifted = TWidth.MultiplyAdd(x, TWidth.Create(1.44269504f), TWidth.Create(12582912f));
        TVector n = TWidth.Subtract(shifted, TWidth.Create(12582912f));
        TVector f = TWidth.MultiplyAdd(n, TWidth.Create(-0.693359375f), x);
        f = TWidth.MultiplyAdd(n, TWidth.Create(2.12194440e-4f), f);
        TVector p = TWidth.Create(1.9875691500e-4f);
        p = TWidth.MultiplyAdd(p, f, TWidth.Create(1.3981999507e-3f));
        p = TWidth.MultiplyAdd(p, f, TWidth.Create(8.3334519073e-3f));
        p = TWidth.MultiplyAdd(p, f, TWidth.Create(4.1665795894e-2f));
        p = TWidth.MultiplyAdd(p, f, TWidth.Create(1.6666665459e-1f));
        p = TWidth.MultiplyAdd(p, f, TWidth.Create(0.5f));
        p = TWidth.MultiplyAdd(p, TWidth.Multiply(f, f), f);
        return TWidth.Multiply(TWidth.Add(p, TWidth.Create(1f)), TWidth.PowerOfTwo(shifted));
    }

    /// <summary>tanh x: a polynomial below 0.625 (Cephes' tanhf), (1 - e^-2|x|) / (1 + e^-2|x|) with the sign of x above.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Tanh(TVector x)
    {
        TVector magnitude = TWidth.Abs(x);
        TVector square = TWidth.Multiply(x, x);
        TVector p = TWidth.Create(-5.70498872745e-3f);
        p = TWidth.MultiplyAdd(p, square, TWidth.Create(2.06390887954e-2f));
        p = TWidth.MultiplyAdd(p, square, TWidth.Create(-5.37397155531e-2f));
        p = TWidth.MultiplyAdd(p, square, TWidth.Create(1.33314422036e-1f));
        p = TWidth.MultiplyAdd(p, square, TWidth.Create(-3.33332819422e-1f));
        TVector small = TWidth.MultiplyAdd(TWidth.Multiply(p, square), x, x);

        TVector one = TWidth.Create(1f);
        TVector zero = TWidth.Create(0f);
        TVector twice = TWidth.Multiply(magnitude, TWidth.Create(-2f));
        TVector shrunk = Exp(twice);
        TVector large = TWidth.Divide(TWidth.Subtract(one, shrunk), TWidth.Add(one, shrunk));
        TVector signed = TWidth.SelectBelow(x, zero, TWidth.Subtract(zero, large), large);
        return TWidth.SelectBelow(magnitude, TWidth.Create(0.625f), small, signed);
    }
}
