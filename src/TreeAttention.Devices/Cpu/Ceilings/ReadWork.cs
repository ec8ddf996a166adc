using System.Runtime.CompilerServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Reads memory, a chunk a unit.</summary>
internal abstract class ReadWork(Region memory) : IWork
{
    /// <summary>Bytes of a unit.</summary>
    internal const long Chunk = 4 << 20;

    /// <summary>Number of units.</summary>
    internal int Units => (int)(memory.Bytes / Chunk);

    /// <summary>The memory.</summary>
    protected Region Memory => memory;

    /// <summary>Writes to the memory, so that every page of it exists.</summary>
    internal void Touch()
    {
        for (int unit = 0; unit < Units; unit++)
        {
            memory.Slice(unit * (Chunk / sizeof(float)), Chunk / sizeof(float)).AsSpan<float>().Fill(1);
        }
    }

    /// <inheritdoc/>
    public abstract void Run(int unit, int worker);
}

/// <summary>Reads with vectors of one width.</summary>
internal sealed unsafe class ReadWork<TWidth, TVector>(Region memory) : ReadWork(memory)
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    /// <summary>What was read, so that it cannot be left out.</summary>
    internal float Total { get; private set; }

    public override void Run(int unit, int worker) => Total = Sum((float*)(Memory.Address + (nint)(unit * Chunk)));

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static float Sum(float* from)
    {
        TVector a = TWidth.Create(0f), b = a, c = a, d = a;
        for (nint i = 0; i < (nint)(Chunk / sizeof(float)); i += 4 * TWidth.Count)
        {
            a = TWidth.Add(a, TWidth.Load(from + i));
            b = TWidth.Add(b, TWidth.Load(from + i + TWidth.Count));
            c = TWidth.Add(c, TWidth.Load(from + i + (2 * TWidth.Count)));
            d = TWidth.Add(d, TWidth.Load(from + i + (3 * TWidth.Count)));
        }

        return TWidth.Sum(TWidth.Add(TWidth.Add(a, b), TWidth.Add(c, d)));
    }
}
