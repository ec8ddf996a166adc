using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace TreeAttention.Devices.Cpu.Vectors;

/// <summary>Eight floats: AVX2, or whatever the processor has for 256 bits.</summary>
internal readonly unsafe struct Width256 : IVectorWidth<Vector256<float>>
{
    public static int Count => 8;

    public static string Name => "AVX2";

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Load(float* source) => Vector256.Load(source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadBFloat16(ushort* source) => (Widen((short*)source) << 16).AsSingle();

    // Sign and exponent reach their places by one shift of the sign-extended half; the mask drops the copies of the sign.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadHalfShifted(ushort* source) =>
        ((Widen((short*)source) << 13) & Vector256.Create(unchecked((int)0x8fffe000))).AsSingle();

    // With the exponent's bias put right, a normal element is itself. A subnormal one, read with an exponent of 1 less than its
    // value's unit, comes out as the unit more than it is; taking the unit away makes normal elements larger, so the smaller
    // of both is right for all.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadE4M3(byte* source)
    {
        Vector256<int> wide = WidenBytes((sbyte*)source) << 20;
        Vector256<int> magnitude = wide & Vector256.Create(0x07f00000);
        Vector256<float> normal = (magnitude + Vector256.Create(120 << 23)).AsSingle();
        Vector256<float> subnormal = (magnitude + Vector256.Create(121 << 23)).AsSingle() - Vector256.Create(1f / 64);
        return (Vector256.MinNative(normal, subnormal).AsInt32() | (wide & Vector256.Create(int.MinValue))).AsSingle();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadInt8(sbyte* source) => Vector256.ConvertToSingle(WidenBytes(source));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector256<float> value, float* target) => value.Store(target);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Create(float value) => Vector256.Create(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Add(Vector256<float> left, Vector256<float> right) => left + right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Subtract(Vector256<float> left, Vector256<float> right) => left - right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Multiply(Vector256<float> left, Vector256<float> right) => left * right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Divide(Vector256<float> left, Vector256<float> right) => left / right;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> MultiplyAdd(Vector256<float> left, Vector256<float> right, Vector256<float> addend) =>
        Vector256.FusedMultiplyAdd(left, right, addend);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Max(Vector256<float> left, Vector256<float> right) => Vector256.MaxNative(left, right);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Abs(Vector256<float> value) => Vector256.Abs(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> KeepFirst(Vector256<float> value, int count) =>
        Vector256.LessThan(Vector256<int>.Indices, Vector256.Create(count)).AsSingle() & value;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> KeepInside(
        Vector256<float> value, Vector256<float> index, Vector256<float> first, Vector256<float> end) =>
        Vector256.ConditionalSelect(
            Vector256.GreaterThanOrEqual(index, first) & Vector256.LessThan(index, end),
            value,
            Vector256.Create(float.NegativeInfinity));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> SelectBelow(
        Vector256<float> value, Vector256<float> limit, Vector256<float> below, Vector256<float> other) =>
        Vector256.ConditionalSelect(Vector256.LessThan(value, limit), below, other);

    // The low bits of value hold n: shifting them to the exponent drops what stands above.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> PowerOfTwo(Vector256<float> value) =>
        ((value.AsInt32() + Vector256.Create(127)) << 23).AsSingle();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Sum(Vector256<float> value) => Vector256.Sum(value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float SumByHalves(Vector256<float> value)
    {
        Vector128<float> four = value.GetLower() + value.GetUpper();
        Vector128<float> two = four + Vector128.Shuffle(four, Vector128.Create(2, 3, 2, 3));
        return two[0] + two[1];
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float First(Vector256<float> value) => value.ToScalar();

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static float Largest(Vector256<float> value)
    {
        var four = Vector128.MaxNative(value.GetLower(), value.GetUpper());
        var two = Vector128.MaxNative(four, Vector128.Shuffle(four, Vector128.Create(2, 3, 2, 3)));
        return float.MaxNative(two[0], two[1]);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> Sums(
        Vector256<float> a, Vector256<float> b, Vector256<float> c, Vector256<float> d,
        Vector256<float> e, Vector256<float> f, Vector256<float> g, Vector256<float> h)
    {
        Vector256<float> first = Pairs(Pairs(a, b), Pairs(c, d));
        Vector256<float> second = Pairs(Pairs(e, f), Pairs(g, h));
        return Vector256.Create(first.GetLower() + first.GetUpper(), second.GetLower() + second.GetUpper());
    }

    // Sums of neighbours, inside each half: [l0+l1, l2+l3, r0+r1, r2+r3 | ...].
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<float> Pairs(Vector256<float> left, Vector256<float> right)
    {
        if (Avx.IsSupported)
        {
            return Avx.HorizontalAdd(left, right);
        }

        Vector256<float> upper = Vector256.Create(0, 0, -1, -1, 0, 0, -1, -1).AsSingle();
        var even = Vector256.Create(0, 2, 0, 2, 4, 6, 4, 6);
        var odd = Vector256.Create(1, 3, 1, 3, 5, 7, 5, 7);
        return Vector256.ConditionalSelect(upper, Vector256.Shuffle(right, even), Vector256.Shuffle(left, even))
            + Vector256.ConditionalSelect(upper, Vector256.Shuffle(right, odd), Vector256.Shuffle(left, odd));
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<int> Widen(short* source) => Avx2.IsSupported
        ? Avx2.ConvertToVector256Int32(source)
        : Vector256.Create(Vector128.WidenLower(Vector128.Load(source)), Vector128.WidenUpper(Vector128.Load(source)));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Vector256<int> WidenBytes(sbyte* source)
    {
        if (Avx2.IsSupported)
        {
            return Avx2.ConvertToVector256Int32(source);
        }

        var eight = Vector128.WidenLower(Vector128.CreateScalarUnsafe(*(long*)source).AsSByte());
        return Vector256.Create(Vector128.WidenLower(eight), Vector128.WidenUpper(eight));
    }
}
