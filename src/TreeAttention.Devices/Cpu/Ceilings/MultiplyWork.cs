using System.Runtime.CompilerServices;

namespace TreeAttention.Devices;

/// <summary>Multiplies and adds in registers.</summary>
internal abstract class MultiplyWork : IWork
{
    /// <summary>Steps of a unit, each twelve vectors.</summary>
    protected const int Steps = 1_000_000;

    /// <summary>Floating-point operations of a unit.</summary>
    internal abstract double OperationsPerUnit { get; }

    /// <inheritdoc/>
    public abstract void Run(int unit, int worker);
}

/// <summary>Multiplies and adds vectors of one width.</summary>
internal sealed class MultiplyWork<TWidth, TVector> : MultiplyWork
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    internal override double OperationsPerUnit => 2.0 * Steps * 12 * TWidth.Count;

    /// <summary>What came out, so that it cannot be left out.</summary>
    internal float Total { get; private set; }

    public override void Run(int unit, int worker) => Total = Work(Steps);

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Work(int steps)
    {
        TVector by = TWidth.Create(0.999f);
        TVector and = TWidth.Create(1e-4f);
        TVector a = and, b = and, c = and, d = and, e = and, f = and, g = and, h = and, i = and, j = and, k = and, l = and;
        for (int step = 0; step < steps; step++)
        {
            a = TWidth.MultiplyAdd(a, by, and);
            b = TWidth.MultiplyAdd(b, by, and);
            c = TWidth.MultiplyAdd(c, by, and);
            d = TWidth.MultiplyAdd(d, by, and);
            e = TWidth.MultiplyAdd(e, by, and);
            f = TWidth.MultiplyAdd(f, by, and);
            g = TWidth.MultiplyAdd(g, by, and);
            h = TWidth.MultiplyAdd(h, by, and);
            i = TWidth.MultiplyAdd(i, by, and);
            j = TWidth.MultiplyAdd(j, by, and);
            k = TWidth.MultiplyAdd(k, by, and);
            l = TWidth.MultiplyAdd(l, by, and);
        }

        a = TWidth.Add(TWidth.Add(TWidth.Add(a, b), TWidth.Add(c, d)), TWidth.Add(TWidth.Add(e, f), TWidth.Add(g, h)));
        return TWidth.Sum(TWidth.Add(a, TWidth.Add(TWidth.Add(i, j), TWidth.Add(k, l))));
    }
}
