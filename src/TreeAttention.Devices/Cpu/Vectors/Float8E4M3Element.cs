using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>f8e4m3 storage. Scales are the kernels' business: queries carry those of keys, outputs those of values.</summary>
internal readonly unsafe struct Float8E4M3Element : IStoredElement
{
    public static int Size => 1;

    public static float Shift => 1f;

    // Storage has rounded such scores by 2048·2^-5 already; fp32 adds 2048·2^-24·√steps < 1e-3.
    public static double ScoreLimit => 2048;

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
