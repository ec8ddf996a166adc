using System;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Posix;

namespace TreeAttention.Devices.Cpu.Memory;

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

/// <summary>How much memory the machine, or the control group of the process, has left.</summary>
internal static class SystemMemory
{
    // Below this the check costs more than it can save.
    private const long Checked = 64L << 20;

    /// <summary>Bytes that can still be used without swapping; <see cref="long.MaxValue"/> where the system does not say.</summary>
    internal static long Available()
    {
        long available = long.MaxValue;
        if (File.Exists("/proc/meminfo"))
        {
            string line = File.ReadLines("/proc/meminfo").FirstOrDefault(l => l.StartsWith("MemAvailable:", StringComparison.Ordinal), "");
            string digits = string.Concat(line.Where(char.IsAsciiDigit));
            available = digits.Length == 0 ? available : long.Parse(digits, CultureInfo.InvariantCulture) * 1024;
        }

        return Math.Min(available, ControlGroups.Available(file => File.Exists(file) ? File.ReadAllText(file) : null));
    }

    /// <summary>Refuses what the system would promise now and kill the process for later.</summary>
    /// <exception cref="FaultException">Out of memory (71).</exception>
    internal static void Require(long bytes)
    {
        if (bytes >= Checked && Available() is long available && bytes > available)
        {
            throw Exhausted(bytes, available);
        }
    }

    /// <summary>The fault for an allocation that does not fit.</summary>
    internal static FaultException Exhausted(long bytes, long available) => new(
        FaultCode.OutOfMemory,
        string.Create(
            CultureInfo.InvariantCulture,
            $"{bytes:N0} bytes of host memory are needed and {available:N0} are available. Use more ranks on more nodes, a smaller {Setting.StorageType}, or a shorter context."));
}

/// <summary>A buffer that only grows: what it held is lost when it does. Its contents are not cleared.</summary>
internal sealed unsafe class Scratch(MemoryAccount account) : IDisposable
{
    private void* _address;
    private long _bytes;

    ~Scratch() => Free();

    /// <summary>At least <paramref name="bytes"/> bytes, aligned, with a margin that may be read and written.</summary>
    internal byte* Bytes(long bytes)
    {
        if (bytes > _bytes || _address == null)
        {
            Free();
            SystemMemory.Require(bytes);
            _address = NativeMemory.AlignedAlloc((nuint)bytes + (2 * HostMemory.Margin), HostMemory.Margin);
            _bytes = bytes;
            account.Take(bytes);
        }

        return (byte*)_address;
    }

    /// <summary>At least <paramref name="count"/> floats.</summary>
    internal float* Floats(long count) => (float*)Bytes(count * sizeof(float));

    /// <summary>At least <paramref name="count"/> doubles.</summary>
    internal double* Doubles(long count) => (double*)Bytes(count * sizeof(double));

    public void Dispose()
    {
        Free();
        GC.SuppressFinalize(this);
    }

    private void Free()
    {
        if (_address != null)
        {
            NativeMemory.AlignedFree(_address);
            account.Return(_bytes);
            _address = null;
            _bytes = 0;
        }
    }
}
