using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Interop.Cuda;

namespace TreeAttention.Devices.Cuda.Driver;

/// <summary>One GPU's primary context and a stream of its own: where all work of one device object is enqueued, in order.</summary>
internal sealed unsafe class CudaContext : IDisposable
{
    private const uint NonBlocking = 1; // ordered against no other stream
    private const int OldestArchitecture = 80; // asynchronous copies, products of bf16
    private const string Waiting = "waiting for the enqueued work";

    private readonly int _device;
    private readonly nint _context;
    private nint _stream;

    /// <summary>Retains the primary context of a device and makes a stream.</summary>
    /// <exception cref="FaultException">There is no such device, or it is too old (69), or it failed (202).</exception>
    internal CudaContext(int ordinal)
    {
        int device = Find(ordinal);
        _device = device;
        Name = ReadName(device);
        BusAddress = ReadBusAddress(device);
        Multiprocessors = Attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        SharedMemoryPerBlock = Attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
        Architecture = RequireArchitecture(ordinal, $"run with {Setting.DeviceCpu}");
        nint context;
        CudaFaults.Check(CudaDriver.cuDevicePrimaryCtxRetain(&context, device), "making a context");
        _context = context;
        Enter();
        nint stream;
        CudaFaults.Check(CudaDriver.cuStreamCreate(&stream, NonBlocking), "making a stream");
        _stream = stream;
    }

    /// <summary>What the driver calls the device.</summary>
    internal string Name { get; }

    /// <summary>Streaming multiprocessors.</summary>
    internal int Multiprocessors { get; }

    /// <summary>Most bytes of shared memory that a block may have.</summary>
    internal int SharedMemoryPerBlock { get; }

    /// <summary>Compute capability: 90 is 9.0.</summary>
    internal int Architecture { get; }

    /// <summary>The PCI bus address.</summary>
    internal string BusAddress { get; }

    /// <summary>Called while work is waited for, and once after it.</summary>
    internal Action? WhileWaiting { get; set; }

    /// <summary>The driver's handle of the context.</summary>
    internal nint Handle => _context;

    /// <summary>The stream, after <see cref="Enter"/>.</summary>
    internal nint Stream => _stream;

    /// <summary>The stream records what is enqueued on it.</summary>
    internal bool IsCapturing { get; set; }

    /// <summary>How often the host waited for the enqueued work.</summary>
    internal long Waits { get; private set; }

    /// <summary>Graphs of the stream, and the one that is recorded.</summary>
    internal List<CudaReplay> Replays { get; } = [];

    /// <summary>What was launched last; an error that comes later may be its.</summary>
    internal string? LastLaunch { get; set; }

    /// <summary>Throws unless the driver succeeded, and names the kernel before.</summary>
    /// <exception cref="FaultException">The device failed (202).</exception>
    internal void Check(CUresult result, string action)
    {
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw CudaFaults.Of(result, LastLaunch is null ? action : $"{action} after {LastLaunch}");
        }
    }

    /// <summary>Throws where something is asked for that no capture can hold.</summary>
    /// <param name="what">In words: <c>An allocation</c>.</param>
    /// <exception cref="InvalidOperationException">The stream is being captured.</exception>
    internal void RefuseWhileCapturing(string what)
    {
        if (IsCapturing)
        {
            throw new InvalidOperationException($"{what} cannot be captured. Do the work once before it is captured, over memory of the device alone.");
        }
    }

    /// <summary>Makes the context the calling thread's; every public operation of the device begins with it.</summary>
    internal void Enter() => CudaFaults.Check(CudaDriver.cuCtxSetCurrent(_context), "entering a context");

    /// <summary>Returns when all that was enqueued is done.</summary>
    /// <exception cref="FaultException">Something that was enqueued failed (202).</exception>
    internal void Synchronize()
    {
        RefuseWhileCapturing("A wait for the enqueued work");
        Waits++;
        if (WhileWaiting is { } look)
        {
            Poll(look);
        }
        else
        {
            Check(CudaDriver.cuStreamSynchronize(_stream), Waiting);
        }
    }

    /// <summary>Device memory of the GPU in bytes.</summary>
    internal long TotalMemory()
    {
        nuint bytes;
        CudaFaults.Check(CudaDriver.cuDeviceTotalMem_v2(&bytes, _device), "asking for the size of memory");
        return (long)bytes;
    }

    /// <summary>Device memory in bytes that the driver can still give, to any process; of the current context's GPU.</summary>
    internal static long FreeMemory()
    {
        nuint free;
        nuint total;
        CudaFaults.Check(CudaDriver.cuMemGetInfo_v2(&free, &total), "asking for free memory");
        return (long)free;
    }

    /// <summary>Waits for what is enqueued before its memory goes; a device that failed refuses, and there is nobody left to tell.</summary>
    internal void Drain()
    {
        _ = CudaDriver.cuCtxSetCurrent(_context);
        if (WhileWaiting is { } look)
        {
            try
            {
                Poll(look);
            }
            catch (FaultException)
            {
                // Other ranks are gone: whoever looked has ended what waits for them.
            }
        }

        _ = CudaDriver.cuStreamSynchronize(_stream);
    }

    public void Dispose()
    {
        if (_stream != 0)
        {
            _ = CudaDriver.cuCtxSetCurrent(_context);
            _ = CudaDriver.cuStreamDestroy_v2(_stream);
            _ = CudaDriver.cuDevicePrimaryCtxRelease_v2(_device);
            _stream = 0;
        }
    }

    /// <summary>Compute capability of a device for which kernels can be compiled: 90 is 9.0.</summary>
    /// <param name="ordinal">The device.</param>
    /// <param name="wayOut">What a user can do instead; null for nothing.</param>
    /// <exception cref="FaultException">There is no such device, or it is too old (69).</exception>
    internal static int RequireArchitecture(int ordinal, string? wayOut)
    {
        int device = Find(ordinal);
        int architecture = (10 * Attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR))
            + Attribute(device, CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
        return architecture >= OldestArchitecture ? architecture : throw new FaultException(
            FaultCode.Unavailable,
            $"CUDA device {ordinal} ({ReadName(device)}) is of compute capability {architecture / 10}.{architecture % 10}, but the kernels need 8.0 or "
            + (wayOut is null ? "newer." : $"newer: {wayOut}."));
    }

    private static int Find(int ordinal)
    {
        int device;
        return CudaDriver.cuDeviceGet(&device, ordinal) == CUresult.CUDA_SUCCESS
            ? device
            : throw new FaultException(FaultCode.Unavailable, $"There is no CUDA device {ordinal} on this machine. Run with {Setting.DeviceCpu}.");
    }

    private static string ReadName(int device)
    {
        const int Most = 256;
        sbyte* name = stackalloc sbyte[Most];
        CudaFaults.Check(CudaDriver.cuDeviceGetName(name, Most, device), "asking for the device's name");
        return Marshal.PtrToStringUTF8((nint)name)!;
    }

    private static string ReadBusAddress(int device)
    {
        const int Most = 32;
        sbyte* address = stackalloc sbyte[Most];
        CudaFaults.Check(CudaDriver.cuDeviceGetPCIBusId(address, Most, device), "asking for the device's place");
        return Marshal.PtrToStringUTF8((nint)address)!;
    }

    private void Poll(Action look)
    {
        var wait = default(SpinWait);
        CUresult result;
        while ((result = CudaDriver.cuStreamQuery(_stream)) == CUresult.CUDA_ERROR_NOT_READY)
        {
            look();
            wait.SpinOnce(sleep1Threshold: -1);
        }

        Check(result, Waiting);
        look();
    }

    private static int Attribute(int device, CUdevice_attribute attribute)
    {
        int value;
        CudaFaults.Check(CudaDriver.cuDeviceGetAttribute(&value, attribute, device), "asking for the device's attributes");
        return value;
    }
}
