using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.Intrinsics;
using TreeAttention.Devices.Cpu.Kernels;
using TreeAttention.Devices.Cpu.Vectors;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;

namespace TreeAttention.Devices.Cpu.Scheduling;

/// <summary>The tile workers of each thread, of one vector width: made when first needed, then kept.</summary>
internal abstract class TileWorkers(int threads, MemoryAccount account) : IDisposable
{
    private readonly TileWorker?[] _workers = new TileWorker?[threads * TileKind.Kinds];

    /// <summary>The instruction set, as descriptions name it.</summary>
    internal abstract string Name { get; }

    /// <summary>The storage types that there are kernels for.</summary>
    protected abstract IReadOnlyCollection<ElementType> Types { get; }

    /// <summary>Rows of a full panel.</summary>
    protected abstract int PanelRows { get; }

    /// <summary>A worker that was reserved before.</summary>
    internal TileWorker this[TileKind kind, int worker] => _workers[(worker * TileKind.Kinds) + kind.Number]!;

    /// <summary>The widest vectors that this processor has.</summary>
    internal static TileWorkers Widest(int threads, MemoryAccount account) => Vector512.IsHardwareAccelerated
        ? new TileWorkers<Width512, Vector512<float>>(threads, account)
        : new TileWorkers<Width256, Vector256<float>>(threads, account);

    /// <summary>The kernel for a call.</summary>
    /// <param name="shape">The whole problem, from which alone the choice follows: so the bits do too.</param>
    /// <param name="type">Storage type.</param>
    /// <param name="isCanonical">Bits do not depend on the choice.</param>
    /// <exception cref="FaultException">The storage type cannot be computed with here (69).</exception>
    internal TileKind KindFor(AttentionShape shape, ElementType type, bool isCanonical)
    {
        if (!Has(type))
        {
            string has = StorageType.Names(Types.Select(StorageType.Of), "and");
            throw new FaultException(
                FaultCode.Unavailable,
                $"Keys and values stored as {type.ShortName()} cannot be computed with on the CPU: it has {has}. Choose one of these with {Setting.StorageType}.");
        }

        // Rows that fill two vectors or less are faster one by one than in a panel of three; some more, where a panel adds up lane by lane.
        int few = isCanonical ? PanelRows * 5 / 6 : PanelRows * 2 / 3;
        return new TileKind(type, (long)shape.GroupSize * shape.QueryLength > few, isCanonical);
    }

    /// <summary>The tiles of a call.</summary>
    internal TileGrid GridFor(TileKind kind, AttentionShape shape, int queries) =>
        TileGrid.For(shape, queries, kind.IsPanel ? PanelRows : 0);

    /// <summary>Makes the workers of a kind ready for tiles of so many rows.</summary>
    internal void Reserve(TileKind kind, int rows)
    {
        for (int worker = 0; worker < threads; worker++)
        {
            ref TileWorker? slot = ref _workers[(worker * TileKind.Kinds) + kind.Number];
            slot ??= Create(kind, account);
            slot.Reserve(rows);
        }
    }

    public void Dispose()
    {
        foreach (TileWorker? worker in _workers)
        {
            worker?.Dispose();
        }
    }

    /// <summary>There is a kernel for the storage type. Every call asks, so it allocates nothing.</summary>
    protected abstract bool Has(ElementType type);

    /// <summary>Makes one worker.</summary>
    protected abstract TileWorker Create(TileKind kind, MemoryAccount account);
}

/// <summary>Tile workers over vectors of one width.</summary>
internal sealed class TileWorkers<TWidth, TVector>(int threads, MemoryAccount account) : TileWorkers(threads, account)
    where TWidth : struct, IVectorWidth<TVector>
    where TVector : struct
{
    // The one list of the CPU's storage types. An array by number: a dictionary of an enum boxes its keys in precompiled code.
    private static readonly Func<TileKind, MemoryAccount, TileWorker>?[] _creators = ByNumber(
        (Float32Element.Type, Create<Float32Element>),
        (Float16Element.Type, Create<Float16Element>),
        (BFloat16Element.Type, Create<BFloat16Element>),
        (Float8E4M3Element.Type, Create<Float8E4M3Element>),
        (Int8Element.Type, Create<Int8Element>));

    internal override string Name => TWidth.Name;

    protected override IReadOnlyCollection<ElementType> Types => [.. Enum.GetValues<ElementType>().Where(Has)];

    protected override int PanelRows => 3 * TWidth.Count;

    protected override bool Has(ElementType type) => (uint)type < (uint)_creators.Length && _creators[(int)type] is not null;

    protected override TileWorker Create(TileKind kind, MemoryAccount account) => _creators[(int)kind.Type]!(kind, account);

    private static Func<TileKind, MemoryAccount, TileWorker>?[] ByNumber(
        params ReadOnlySpan<(ElementType Type, Func<TileKind, MemoryAccount, TileWorker> Create)> entries)
    {
        var creators = new Func<TileKind, MemoryAccount, TileWorker>?[StorageType.All.Count];
        foreach ((ElementType type, Func<TileKind, MemoryAccount, TileWorker> create) in entries)
        {
            creators[(int)type] = create;
        }

        return creators;
    }

#pragma warning disable CA2000 // The worker owns its kernel and disposes of it.
    private static TileWorker Create<TElement>(TileKind kind, MemoryAccount account)
        where TElement : struct, IStoredElement
    {
        TileKernel kernel = kind.IsPanel
            ? new PanelKernel<TWidth, TVector, TElement>(kind.IsCanonical, account)
            : new RowKernel<TWidth, TVector, TElement>(kind.IsCanonical, account);
        return typeof(TWidth) == typeof(Width512)
            ? new TileWorker<Double512, Vector512<double>, TElement>(kernel, kind.IsCanonical, account)
            : new TileWorker<Double256, Vector256<double>, TElement>(kernel, kind.IsCanonical, account);
    }
#pragma warning restore CA2000
}

/// <summary>Which kernel over which storage type.</summary>
/// <param name="Type">Storage type.</param>
/// <param name="IsPanel">Many query rows: bound by arithmetic, not by reading.</param>
/// <param name="IsCanonical">Both kernels give the same bits, which are those of a row's own keys: the reproducible mode.</param>
internal readonly record struct TileKind(ElementType Type, bool IsPanel, bool IsCanonical)
{
    /// <summary>Number of kinds.</summary>
    internal static int Kinds => 4 * StorageType.All.Count;

    /// <summary>0 to <see cref="Kinds"/> - 1.</summary>
    internal int Number => ((int)Type * 4) + (IsPanel ? 2 : 0) + (IsCanonical ? 1 : 0);
}
