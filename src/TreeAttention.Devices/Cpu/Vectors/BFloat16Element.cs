using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>bfloat16 storage.</summary>
internal readonly unsafe struct BFloat16Element : IStoredElement
{
    public static int Size => sizeof(ushort);

    public static float Shift => 1f;

    // Storage has rounded such scores by 2048·2^-9 already; fp32 adds 2048·2^-24·√steps < 1e-3.
    public static double ScoreLimit => 2048;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadBFloat16((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source) => Width256.LoadBFloat16((ushort*)source);
}
