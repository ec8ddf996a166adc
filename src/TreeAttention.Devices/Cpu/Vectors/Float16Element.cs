using System;
using System.Runtime.CompilerServices;

namespace TreeAttention.Devices;

/// <summary>binary16 storage. Vectors are loaded 2^112 times smaller; queries and weights carry the factor.</summary>
internal readonly unsafe struct Float16Element : IStoredElement
{
    public static int Size => sizeof(ushort);

    public static float Shift => 5192296858534827628530496329220096f;

    // Storage has rounded such scores by 2048·2^-12 already; fp32 adds 2048·2^-24·√steps < 1e-3.
    public static double ScoreLimit => 2048;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct => TWidth.LoadHalfShifted((ushort*)source);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static double ToDouble(byte* source) => (double)*(Half*)source;
}
