using System.Runtime.Intrinsics;

namespace TreeAttention.Devices.Cpu.Vectors;

/// <summary>fp32 vectors of one width: kernels are written once over it and compiled once for each width.</summary>
/// <typeparam name="TVector">The vector: <see cref="Vector256{T}"/> or <see cref="Vector512{T}"/> of float.</typeparam>
internal unsafe interface IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>Floats of a vector.</summary>
    static abstract int Count { get; }

    /// <summary>The instruction set, as descriptions name it.</summary>
    static abstract string Name { get; }

    static abstract TVector Load(float* source);

    /// <summary>bfloat16 elements, exactly.</summary>
    static abstract TVector LoadBFloat16(ushort* source);

    /// <summary>Finite binary16 elements × 2^-112, exactly: .NET has no conversion instruction, and this takes three operations.</summary>
    static abstract TVector LoadHalfShifted(ushort* source);

    /// <summary>f8e4m3 elements that are not NaN, exactly, without a subnormal float on the way: those cost some processors 150 cycles.</summary>
    static abstract TVector LoadE4M3(byte* source);

    /// <summary>Signed bytes, exactly.</summary>
    static abstract TVector LoadInt8(sbyte* source);

    static abstract void Store(TVector value, float* target);

    static abstract TVector Create(float value);

    static abstract TVector Add(TVector left, TVector right);

    static abstract TVector Subtract(TVector left, TVector right);

    static abstract TVector Multiply(TVector left, TVector right);

    static abstract TVector Divide(TVector left, TVector right);

    /// <summary>left × right + addend, rounded once.</summary>
    static abstract TVector MultiplyAdd(TVector left, TVector right, TVector addend);

    /// <summary>The larger of each pair; no operand is NaN.</summary>
    static abstract TVector Max(TVector left, TVector right);

    static abstract TVector Abs(TVector value);

    /// <summary>The first <paramref name="count"/> elements; the others become 0 whatever they are, NaN included.</summary>
    static abstract TVector KeepFirst(TVector value, int count);

    /// <summary><paramref name="value"/> where first &lt;= index &lt; end, -∞ elsewhere.</summary>
    static abstract TVector KeepInside(TVector value, TVector index, TVector first, TVector end);

    /// <summary><paramref name="below"/> where value &lt; limit, <paramref name="other"/> elsewhere.</summary>
    static abstract TVector SelectBelow(TVector value, TVector limit, TVector below, TVector other);

    /// <summary>2^n for n = value - 1.5·2^23, -127 &lt;= n &lt;= 127; -127 gives 0.</summary>
    static abstract TVector PowerOfTwo(TVector value);

    static abstract float Sum(TVector value);

    /// <summary>The sum in one order on every machine: the upper half is added to the lower one, and so on.</summary>
    static abstract float SumByHalves(TVector value);

    /// <summary>The first element.</summary>
    static abstract float First(TVector value);

    static abstract float Largest(TVector value);

    /// <summary>The sums of eight vectors, each in the same order of additions.</summary>
    static abstract Vector256<float> Sums(
        TVector a, TVector b, TVector c, TVector d, TVector e, TVector f, TVector g, TVector h);
}
