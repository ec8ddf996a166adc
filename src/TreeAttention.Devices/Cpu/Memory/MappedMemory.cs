using System;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Devices;

/// <summary>Zeroed pages straight from the system, huge ones where it has them: fewer TLB misses when a shard is streamed.</summary>
internal sealed class MappedMemory : IDisposable
{
    /// <summary>Bytes of a huge page; smaller allocations come from the heap.</summary>
    internal const long HugePage = 2L << 20;

    private readonly long _bytes;
    private readonly MemoryAccount _account;
    private readonly nuint _mapped;
    private nint _mapping;

    /// <summary>Maps <paramref name="bytes"/> bytes and the margin that vector loads may touch.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal MappedMemory(long bytes, ElementType type, MemoryAccount account)
    {
        SystemMemory.Require(bytes);
        _mapped = (nuint)(bytes + HostMemory.Margin + HugePage);
        _mapping = MemoryAdvice.Map(0, _mapped, MemoryAdvice.ReadWrite, MemoryAdvice.PrivateAnonymous, -1, 0);
        if (_mapping == MemoryAdvice.Failed)
        {
            _mapping = 0;
            GC.SuppressFinalize(this);
            throw SystemMemory.Exhausted(bytes, SystemMemory.Available());
        }

        nint aligned = (_mapping + (nint)HugePage - 1) & ~((nint)HugePage - 1);

        // Advice alone: a kernel without huge pages refuses it, and ordinary ones do as well.
        _ = MemoryAdvice.Advise(aligned, (nuint)(bytes + HostMemory.Margin), MemoryAdvice.HugePages);
        _bytes = bytes;
        _account = account;
        _account.Take(bytes);
        Region = new Region(aligned, bytes, type, MemoryPlace.Host);
    }

    ~MappedMemory() => Unmap();

    /// <summary>The memory, aligned to a huge page.</summary>
    internal Region Region { get; }

    public void Dispose()
    {
        Unmap();
        GC.SuppressFinalize(this);
    }

    private void Unmap()
    {
        if (_mapping != 0)
        {
            _ = MemoryAdvice.Unmap(_mapping, _mapped);
            _mapping = 0;
            _account.Return(_bytes);
        }
    }
}
