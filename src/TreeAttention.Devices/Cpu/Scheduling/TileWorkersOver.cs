using System.Runtime.Intrinsics;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

/// <summary>Tile workers over vectors of one width.</summary>
internal sealed class TileWorkers<TWidth, TVector>(int threads, MemoryAccount account) : TileWorkers(threads, account)
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    internal override string Name => TWidth.Name;

    protected override int PanelRows => 3 * TWidth.Count;

    protected override TileWorker Create(TileKind kind, MemoryAccount account) => kind.Element switch
    {
        0 => Create<Float32Element>(kind, account),
        1 => Create<Float16Element>(kind, account),
        2 => Create<BFloat16Element>(kind, account),
        _ => Create<Float8E4M3Element>(kind, account),
    };

#pragma warning disable CA2000 // The worker owns its kernel and disposes of it.
    private static TileWorker Create<TElement>(TileKind kind, MemoryAccount account)
        where TElement : struct, IStoredElement
    {
        TileKernel kernel = kind.IsPanel
            ? new PanelKernel<TWidth, TVector, TElement>(account)
            : new RowKernel<TWidth, TVector, TElement>(account);
        return typeof(TWidth) == typeof(Width512)
            ? new TileWorker<Double512, Vector512<double>, TElement>(kernel, account)
            : new TileWorker<Double256, Vector256<double>, TElement>(kernel, account);
    }
#pragma warning restore CA2000
}
