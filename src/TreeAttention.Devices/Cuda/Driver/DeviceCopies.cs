using System;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>Copies between all places, in stream order; ordinary host memory goes through page-locked staging.</summary>
/// <remarks>
/// The bytes of ordinary memory have left when a copy from it returns, and have arrived when a copy to it returns: nothing
/// else keeps a caller from changing them. Copies between page-locked and device memory are only enqueued. The staging memory is a
/// ring of parts: a part is written again when what it held has left, which it has long before, unless the device is far behind.
/// </remarks>
internal sealed unsafe class DeviceCopies : IDisposable
{
    private const int Parts = 4;
    private const long PartBytes = 1 << 20;
    private const long StagingBytes = Parts * PartBytes;
    private const uint WithoutTiming = 2;
    private readonly CudaContext _context;
    private readonly PinnedMemory _staging;
    private readonly nint[] _left = new nint[Parts]; // events behind the last copy from each part
    private long _staged;

    internal DeviceCopies(CudaContext context)
    {
        _context = context;
        _staging = new PinnedMemory(StagingBytes, ElementType.Byte);
        for (int part = 0; part < Parts; part++)
        {
            nint made;
            CudaFaults.Check(CudaDriver.cuEventCreate(&made, WithoutTiming), "making an event");
            _left[part] = made;
        }
    }

    /// <summary>Copies a region to an equally long one.</summary>
    internal void Copy(Region from, Region to)
    {
        if (from.Bytes != to.Bytes)
        {
            throw new ArgumentException($"{from.Bytes} bytes cannot be copied to {to.Bytes} bytes.", nameof(to));
        }

        if (from.Bytes == 0)
        {
            return;
        }

        switch (from.Place, to.Place)
        {
            case (MemoryPlace.Device, MemoryPlace.Device):
                _context.Check(
                    CudaDriver.cuMemcpyDtoDAsync_v2((ulong)to.Address, (ulong)from.Address, (nuint)to.Bytes, _context.Stream), "a copy");
                break;
            case (MemoryPlace.Pinned, MemoryPlace.Device):
                Upload((byte*)from.Address, to.Address, to.Bytes);
                break;
            case (MemoryPlace.Device, MemoryPlace.Pinned):
                Download(from.Address, (byte*)to.Address, to.Bytes);
                break;
            case (MemoryPlace.Host, MemoryPlace.Device):
                UploadStaged((byte*)from.Address, to.Address, to.Bytes);
                break;
            case (MemoryPlace.Device, MemoryPlace.Host):
                DownloadStaged(from.Address, (byte*)to.Address, to.Bytes);
                break;
            default:
                // A page-locked source may be the target of a copy that is still enqueued, a target the source of one.
                _context.Synchronize();
                Buffer.MemoryCopy((void*)from.Address, (void*)to.Address, to.Bytes, from.Bytes);
                break;
        }
    }

    /// <summary>Uploads an array.</summary>
    internal void Upload<T>(ReadOnlySpan<T> values, nint to)
        where T : unmanaged
    {
        fixed (T* address = values)
        {
            UploadStaged((byte*)address, to, (long)values.Length * sizeof(T));
        }
    }

    /// <summary>Sets bytes of device memory.</summary>
    internal void Fill(nint address, byte value, long bytes)
    {
        if (bytes > 0)
        {
            _context.Check(CudaDriver.cuMemsetD8Async((ulong)address, value, (nuint)bytes, _context.Stream), "a fill");
        }
    }

    public void Dispose()
    {
        _staging.Dispose();
        foreach (nint one in _left)
        {
            _ = CudaDriver.cuEventDestroy_v2(one);
        }
    }

    private void Upload(byte* from, nint to, long bytes) =>
        _context.Check(CudaDriver.cuMemcpyHtoDAsync_v2((ulong)to, from, (nuint)bytes, _context.Stream), "an upload");

    private void Download(nint from, byte* to, long bytes) =>
        _context.Check(CudaDriver.cuMemcpyDtoHAsync_v2(to, (ulong)from, (nuint)bytes, _context.Stream), "a download");

    private void UploadStaged(byte* from, nint to, long bytes)
    {
        _context.RefuseWhileCapturing("A copy from ordinary host memory");
        for (long done = 0; done < bytes;)
        {
            long piece = Math.Min(bytes - done, PartBytes - (_staged % PartBytes));
            byte* stage = (byte*)_staging.Region.Address + _staged;
            Buffer.MemoryCopy(from + done, stage, piece, piece);
            Upload(stage, to + (nint)done, piece);
            done += piece;
            _staged += piece;
            if (_staged % PartBytes == 0)
            {
                EnterNextPart();
            }
        }
    }

    private void EnterNextPart()
    {
        _context.Check(CudaDriver.cuEventRecord(_left[(_staged / PartBytes) - 1], _context.Stream), "recording an event");
        _staged %= StagingBytes;
        CUresult left = CudaDriver.cuEventQuery(_left[_staged / PartBytes]); // of an event that was never recorded: it has
        if (left == CUresult.CUDA_ERROR_NOT_READY)
        {
            _context.Synchronize();
        }
        else
        {
            _context.Check(left, "asking an event");
        }
    }

    private void DownloadStaged(nint from, byte* to, long bytes)
    {
        _context.Synchronize();
        _staged = 0;
        for (long done = 0; done < bytes;)
        {
            long piece = Math.Min(bytes - done, StagingBytes);
            Download(from + (nint)done, (byte*)_staging.Region.Address, piece);
            _context.Synchronize();
            Buffer.MemoryCopy((void*)_staging.Region.Address, to + done, piece, piece);
            done += piece;
        }
    }
}
