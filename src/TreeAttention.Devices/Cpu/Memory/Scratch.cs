using System;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;

namespace TreeAttention.Devices;

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
