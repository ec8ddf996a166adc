using System.Runtime.Intrinsics;

namespace TreeAttention.Devices;

/// <summary>Double vectors of one width, as the precise kernel needs them.</summary>
/// <typeparam name="TVector">The vector of double.</typeparam>
internal unsafe interface IDoubleWidth<TVector>
    where TVector : struct
{
    /// <summary>Doubles of a vector.</summary>
    static abstract int Count { get; }

    static abstract TVector Load(double* source);

    static abstract void Store(TVector value, double* target);

    static abstract TVector Create(double value);

    static abstract TVector Multiply(TVector left, TVector right);

    /// <summary>left × right + addend, rounded once.</summary>
    static abstract TVector MultiplyAdd(TVector left, TVector right, TVector addend);

    /// <summary>The sums of four vectors.</summary>
    static abstract Vector256<double> Sums(TVector a, TVector b, TVector c, TVector d);
}
