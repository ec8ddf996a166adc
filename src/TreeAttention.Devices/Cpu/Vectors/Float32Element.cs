using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>binary32 storage.</summary>
internal readonly unsafe struct Float32Element : IStoredElement
{
    public static int Size => sizeof(float);

    public static float Shift => 1f;

    // Rounding a dot product of |q||k||scale| <= 48, in chains of 32, moves the score by some 1e-6 and the output by less than 1e-5.
    public static double ScoreLimit => 48;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.Load((float*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector256<float> LoadExact(byte* source) => Vector256.Load((float*)source);
}
