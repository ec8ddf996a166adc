using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices.Cpu.Vectors;

/// <summary>A storage type of keys and values, read as fp32 vectors that are <see cref="Shift"/> times smaller.</summary>
internal unsafe interface IStoredElement
{
    /// <summary>What it is.</summary>
    static abstract ElementType Type { get; }

    /// <summary>Bytes of an element.</summary>
    static abstract int Size { get; }

    /// <summary>What a loaded vector has to be multiplied by: 1, or 2^112 for binary16.</summary>
    static abstract float Shift { get; }

    /// <summary>The vector that starts at <paramref name="source"/>, divided by <see cref="Shift"/>; exact for finite elements.</summary>
    static abstract TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct;

    /// <summary>Eight elements, exactly, NaN and ∞ too.</summary>
    static abstract Vector256<float> LoadExact(byte* source);
}

/// <summary>bfloat16 storage.</summary>
internal readonly unsafe struct BFloat16Element : IStoredElement
{
    public static ElementType Type => ElementType.BFloat16;

    public static int Size => sizeof(ushort);

    public static float Shift => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadBFloat16((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source) => Width256.LoadBFloat16((ushort*)source);
}

/// <summary>binary16 storage. Vectors are loaded 2^112 times smaller; queries and weights carry the factor.</summary>
internal readonly unsafe struct Float16Element : IStoredElement
{
    public static ElementType Type => ElementType.Float16;

    public static int Size => sizeof(ushort);

    public static float Shift => 5192296858534827628530496329220096f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadHalfShifted((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source)
    {
        // The largest exponent comes out as 65,536 and more: ∞ where the fraction is 0, NaN elsewhere.
        Vector256<float> value = Width256.LoadHalfShifted((ushort*)source) * Shift;
        var magnitude = Vector256.Abs(value);
        var unbounded = Vector256.ConditionalSelect(
            Vector256.Equals(magnitude, Vector256.Create(65536f)), value * float.PositiveInfinity, Vector256.Create(float.NaN));
        return Vector256.ConditionalSelect(Vector256.LessThan(magnitude, Vector256.Create(65536f)), value, unbounded);
    }
}

/// <summary>binary32 storage.</summary>
internal readonly unsafe struct Float32Element : IStoredElement
{
    public static ElementType Type => ElementType.Float32;

    public static int Size => sizeof(float);

    public static float Shift => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.Load((float*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source) => Vector256.Load((float*)source);
}

/// <summary>f8e4m3 storage. Scales are the kernels' business: queries carry those of keys, outputs those of values.</summary>
internal readonly unsafe struct Float8E4M3Element : IStoredElement
{
    public static ElementType Type => ElementType.Float8E4M3;

    public static int Size => 1;

    public static float Shift => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadE4M3(source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source)
    {
        // NaN comes out as the number after the largest.
        Vector256<float> value = Width256.LoadE4M3(source);
        return Vector256.ConditionalSelect(Vector256.LessThan(Vector256.Abs(value), Vector256.Create(480f)), value, Vector256.Create(float.NaN));
    }
}

/// <summary>Symmetric int8 storage, with scales as f8e4m3 has them.</summary>
internal readonly unsafe struct Int8Element : IStoredElement
{
    public static ElementType Type => ElementType.Int8;

    public static int Size => 1;

    public static float Shift => 1f;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadInt8((sbyte*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source)
    {
        // -128 stands for NaN.
        Vector256<float> value = Width256.LoadInt8((sbyte*)source);
        return Vector256.ConditionalSelect(Vector256.Equals(value, Vector256.Create(-128f)), Vector256.Create(float.NaN), value);
    }
}
