using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices;

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
