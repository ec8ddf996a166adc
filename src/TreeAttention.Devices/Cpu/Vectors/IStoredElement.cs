using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>A storage type of keys and values, read as fp32 vectors that are <see cref="Shift"/> times smaller.</summary>
internal unsafe interface IStoredElement
{
    /// <summary>Bytes of an element.</summary>
    static abstract int Size { get; }

    /// <summary>What a loaded vector has to be multiplied by: 1, or 2^112 for binary16.</summary>
    static abstract float Shift { get; }

    /// <summary>Largest bound on |score| for which fp32 dot products are exact enough.</summary>
    static abstract double ScoreLimit { get; }

    /// <summary>The vector that starts at <paramref name="source"/>, divided by <see cref="Shift"/>; exact for finite elements.</summary>
    static abstract TVector Load<TWidth, TVector>(byte* source)
        where TWidth : struct, IVectorWidth<TVector>
        where TVector : struct;

    /// <summary>Eight elements, exactly, NaN and ∞ too.</summary>
    static abstract Vector256<float> LoadExact(byte* source);
}
