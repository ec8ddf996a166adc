using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

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
