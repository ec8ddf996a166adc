using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices.Cpu.Vectors;

/// <summary>Double vectors of one width, as the precise kernel needs them.</summary>
/// <typeparam name="TVector">The vector of double.</typeparam>
internal unsafe interface IDoubleWidth<TVector>
    where TVector : struct
{
    /// <summary>Doubles of a vector.</summary>
    static abstract int Count { get; }

    static abstract TVector Load(double* source);

    static abstract void Store(TVector value, double* target);

    static abstract TVector Create(double value);

    static abstract TVector Multiply(TVector left, TVector right);

    /// <summary>left × right + addend, rounded once.</summary>
    static abstract TVector MultiplyAdd(TVector left, TVector right, TVector addend);

    /// <summary>The sums of four vectors.</summary>
    static abstract Vector256<double> Sums(TVector a, TVector b, TVector c, TVector d);
}

/// <summary>Double vectors of 256 bits.</summary>
internal readonly unsafe struct Double256 : IDoubleWidth<Vector256<double>>
{
    public static int Count => 4;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> Load(double* source) => Vector256.Load(source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector256<double> value, double* target) => value.Store(target);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> Create(double value) => Vector256.Create(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> Multiply(Vector256<double> left, Vector256<double> right) => left * right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> MultiplyAdd(Vector256<double> left, Vector256<double> right, Vector256<double> addend) =>
        Vector256.FusedMultiplyAdd(left, right, addend);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> Sums(
        Vector256<double> a, Vector256<double> b, Vector256<double> c, Vector256<double> d) => Vector256.Create(Pair(a, b), Pair(c, d));

    // [sum of left, sum of right]
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector128<double> Pair(Vector256<double> left, Vector256<double> right)
    {
        Vector128<double> a = left.GetLower() + left.GetUpper();
        Vector128<double> b = right.GetLower() + right.GetUpper();
        return Sse2.IsSupported ? Sse2.UnpackLow(a, b) + Sse2.UnpackHigh(a, b) : Vector128.Create(a[0] + a[1], b[0] + b[1]);
    }
}

/// <summary>Double vectors of 512 bits.</summary>
internal readonly unsafe struct Double512 : IDoubleWidth<Vector512<double>>
{
    public static int Count => 8;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<double> Load(double* source) => Vector512.Load(source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector512<double> value, double* target) => value.Store(target);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<double> Create(double value) => Vector512.Create(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<double> Multiply(Vector512<double> left, Vector512<double> right) => left * right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<double> MultiplyAdd(Vector512<double> left, Vector512<double> right, Vector512<double> addend) =>
        Vector512.FusedMultiplyAdd(left, right, addend);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<double> Sums(
        Vector512<double> a, Vector512<double> b, Vector512<double> c, Vector512<double> d) => Double256.Sums(Half(a), Half(b), Half(c), Half(d));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<double> Half(Vector512<double> value) => value.GetLower() + value.GetUpper();
}

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
