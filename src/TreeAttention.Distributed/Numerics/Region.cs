using System;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Distributed.Numerics;

/// <summary>In which memory a region lies.</summary>
internal enum MemoryPlace
{
    /// <summary>Ordinary memory of the process.</summary>
    Host,

    /// <summary>Host memory that a device may read and write by itself (page-locked).</summary>
    Pinned,

    /// <summary>Memory of a device; the host must not touch it.</summary>
    Device,
}

/// <summary>A stretch of memory that transports move and devices compute on: address, length, element type, place.</summary>
/// <remarks>It owns nothing: whoever allocated the memory (<see cref="IDevice.Allocate"/>) frees it.</remarks>
/// <param name="Address">First byte.</param>
/// <param name="Bytes">Length in bytes.</param>
/// <param name="Type">What the bytes are.</param>
/// <param name="Place">Where they lie.</param>
internal readonly record struct Region(nint Address, long Bytes, ElementType Type, MemoryPlace Place)
{
    /// <summary>A region of no bytes.</summary>
    public static Region Empty => default;

    /// <summary>Number of elements.</summary>
    public long Count => StorageType.Of(Type).CountIn(Bytes);

    /// <summary>The part that begins at element <paramref name="first"/> and has <paramref name="count"/> elements.</summary>
    /// <remarks>Elements of fewer than eight bits are cut at whole bytes: a page's rows are, whose dimensions are even.</remarks>
    /// <exception cref="ArgumentOutOfRangeException">The part does not lie inside the region.</exception>
    public Region Slice(long first, long count)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(first);
        ArgumentOutOfRangeException.ThrowIfNegative(count);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(first + count, Count);
        var type = StorageType.Of(Type);
        if (first * type.BitsPerElement % 8 != 0)
        {
            throw new ArgumentOutOfRangeException(nameof(first), first, $"An element of {type.Name} with this number does not begin at a byte.");
        }

        return this with { Address = Address + (nint)type.BytesFor(first), Bytes = type.BytesFor(count) };
    }

    /// <summary>The host memory as a span. At most 2^31 - 1 elements.</summary>
    /// <exception cref="InvalidOperationException">The region lies on a device, or its elements are of another size.</exception>
    public unsafe Span<T> AsSpan<T>()
        where T : unmanaged
    {
        if (Place == MemoryPlace.Device)
        {
            throw new InvalidOperationException("The region lies in device memory; copy it to the host first.");
        }

        if (Bytes % sizeof(T) != 0)
        {
            throw new InvalidOperationException($"A region of {Bytes} bytes does not hold whole elements of {sizeof(T)} bytes.");
        }

        return MemoryMarshal.CreateSpan(ref Unsafe.AsRef<T>((void*)Address), checked((int)(Bytes / sizeof(T))));
    }
}
