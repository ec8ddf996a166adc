using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Runtime.InteropServices;
using System.Threading;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Cuda;
using TreeAttention.Interop.Nccl;

namespace TreeAttention.Communication.Nccl;

/// <summary>One rank's use of NCCL: its device, and all communicators that it is in. The first fault ends them all.</summary>
/// <remarks>
/// Communicators do not block, so every wait is a loop here that looks for errors and for the other ranks' end; nobody else is
/// inside NCCL then, which makes an abort safe. Calls come from the rank's one thread. A communicator cannot end before the
/// graphs that hold operations of it: NCCL waits for them, also in an abort.
/// </remarks>
internal sealed unsafe class NcclSession(IStreamDevice device, bool mayCapture, Action lookForFault) : IDisposable
{
    private static readonly TimeSpan _grace = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan _leavingLimit = TimeSpan.FromSeconds(10);

    private readonly List<NcclCommunicator> _communicators = [];
    private FaultException? _ended;

    /// <summary>The rank's GPU.</summary>
    internal IStreamDevice Device => device;

    /// <summary>Operations may be captured.</summary>
    internal bool MayCapture => mayCapture;

    /// <summary>The second stream.</summary>
    internal NcclSideStream Side { get; } = new(device);

    /// <summary>From now on waits for the device are waits for the other ranks.</summary>
    internal void Begin() => device.WhileWaiting = Look;

    /// <summary>Joins a communicator. Every rank of it calls this.</summary>
    internal NcclCommunicator Connect(ncclUniqueId id, int rank, int size)
    {
        device.EnterStream();
        nint handle;
        ncclConfig_t config = NcclLibrary.NonblockingConfig();
        ncclResult_t result = NcclNative.ncclCommInitRankConfig(&handle, size, id, rank, &config);
        return Add(new NcclCommunicator(this, handle, rank, size), result, "connecting");
    }

    /// <summary>Joins a part of a communicator. Every rank of it calls this.</summary>
    internal NcclCommunicator Split(NcclCommunicator parent, int color, int key, int rank, int size)
    {
        device.EnterStream();
        nint handle;
        ncclConfig_t config = NcclLibrary.NonblockingConfig();
        ncclResult_t result = NcclNative.ncclCommSplit(parent.Handle, color, key, &handle, &config);

        // The handle is there when the parent has done its part.
        parent.Settle(result, "split", 0);
        return Add(new NcclCommunicator(this, handle, rank, size), ncclResult_t.ncclInProgress, "split");
    }

    /// <summary>Throws the fault that ended the session.</summary>
    internal void ThrowIfEnded()
    {
        if (_ended is { } fault)
        {
            throw new FaultException(fault.Code, fault.Message, fault) { Rank = fault.Rank, IsAgreed = fault.IsAgreed };
        }
    }

    /// <summary>Looks for errors of the library and for the end of the group; either ends the session.</summary>
    internal void Look()
    {
        ThrowIfEnded();
        foreach (NcclCommunicator communicator in _communicators)
        {
            communicator.Look();
        }

        LookForFault();
    }

    /// <summary>Another rank is gone, NCCL says: whoever knows why gets a second to tell, and its word is thrown.</summary>
    internal void AwaitReason()
    {
        for (long start = Stopwatch.GetTimestamp(); Stopwatch.GetElapsedTime(start) < _grace;)
        {
            LookForFault();
            Thread.Sleep(10);
        }
    }

    /// <summary>Ends the session: all communicators are aborted, so that what is enqueued ends.</summary>
    /// <returns>The fault, to throw.</returns>
    internal FaultException End(FaultException fault)
    {
        _ended ??= fault;
        Abort();
        return fault;
    }

    /// <summary>Leaves in order: every rank calls it when its work is done.</summary>
    internal void Leave()
    {
        ThrowIfEnded();
        device.Synchronize();
        device.EndReplays();
        long start = Stopwatch.GetTimestamp();
        foreach (NcclCommunicator communicator in _communicators)
        {
            communicator.Leave(() => Stopwatch.GetElapsedTime(start) > _leavingLimit);
        }

        _communicators.Clear();
    }

    /// <summary>Ends what was not left in order, without waiting for anyone.</summary>
    public void Dispose()
    {
        device.WhileWaiting = null;
        Abort();
        Side.Dispose();
    }

    private void LookForFault()
    {
        try
        {
            lookForFault();
        }
        catch (FaultException fault)
        {
            throw End(fault);
        }
    }

    private NcclCommunicator Add(NcclCommunicator communicator, ncclResult_t result, string operation)
    {
        if (communicator.Handle != 0)
        {
            _communicators.Add(communicator);
        }

        communicator.Settle(result, operation, 0);
        return communicator;
    }

    // Each abort first tells the kernels of its communicator to end, and then waits: for the stream, in which other communicators
    // may be stuck, and for the graphs. So all are told at once, and the graphs end meanwhile.
    private void Abort()
    {
        device.EnterStream();
        Thread[] aborting = [.. _communicators.Select(Aborting)];
        device.EndReplays();
        foreach (Thread thread in aborting)
        {
            thread.Join(_leavingLimit);
        }

        _communicators.Clear();
    }

    private static Thread Aborting(NcclCommunicator communicator)
    {
        var thread = new Thread(communicator.Abort) { IsBackground = true, Name = "NCCL abort" };
        thread.Start();
        return thread;
    }
}

/// <summary>What one rank brings to a group that NCCL connects.</summary>
/// <param name="Device">The rank's GPU.</param>
/// <param name="Control">How the ranks agree on the communicator.</param>
/// <param name="Nodes">Node of each rank, for reductions that look at the topology.</param>
/// <param name="Traffic">Counts what the rank sends.</param>
internal sealed record NcclSetUp(IStreamDevice Device, IControlPlane Control, IReadOnlyList<int> Nodes, Traffic Traffic)
{
    /// <summary>NCCL_HOSTID: what this process calls its machine towards NCCL; null for the machine's own name.</summary>
    public string? HostId { get; init; }

    /// <summary>NCCL_MULTI_RANK_GPU_ENABLE: NCCL may put several ranks on one GPU.</summary>
    public bool MayShareGpus { get; init; }

    /// <summary>
    /// No other rank lives in this process. Then operations may be captured: of graphs of several communicators that one process
    /// launches, NCCL says that they have been seen to deadlock.
    /// </summary>
    public bool IsAloneInProcess { get; init; }

    /// <summary>Gives memory that the ranks of a node share (<see cref="ITransport.SharePeerMemory"/>); null where they share none.</summary>
    public Func<long, IPeerMemory?> SharePeerMemory { get; init; } = _ => null;

    /// <summary>Throws when another rank has ended the group; called now and then while this one waits.</summary>
    public Action LookForFault { get; init; } = () => { };
}

/// <summary>A second stream of a GPU: what is enqueued on it follows the device's work of before, and runs beside that of after, until it is joined.</summary>
internal sealed unsafe class NcclSideStream : IDisposable
{
    private const uint NonBlocking = 1; // ordered against no other stream
    private const uint WithoutTiming = 2;

    private readonly IStreamDevice _device;
    private nint _stream;
    private nint _event;

    internal NcclSideStream(IStreamDevice device)
    {
        _device = device;
        device.EnterStream();
        nint stream;
        Check(CudaDriver.cuStreamCreate(&stream, NonBlocking), "making a stream");
        _stream = stream;
        nint made;
        Check(CudaDriver.cuEventCreate(&made, WithoutTiming), "making an event");
        _event = made;
    }

    /// <summary>Lets the second stream follow all work that the device has enqueued.</summary>
    /// <returns>The second stream.</returns>
    internal nint Fork()
    {
        Follow(_stream, _device.EnterStream());
        return _stream;
    }

    /// <summary>Lets the device's work from now on follow all that the second stream has.</summary>
    internal void Join() => Follow(_device.EnterStream(), _stream);

    public void Dispose()
    {
        if (_stream != 0)
        {
            _device.EnterStream();
            _ = CudaDriver.cuStreamDestroy_v2(_stream);
            _ = CudaDriver.cuEventDestroy_v2(_event);
            (_stream, _event) = (0, 0);
        }
    }

    private void Follow(nint later, nint earlier)
    {
        Check(CudaDriver.cuEventRecord(_event, earlier), "recording an event");
        Check(CudaDriver.cuStreamWaitEvent(later, _event, 0), "waiting for an event");
    }

    private static void Check(CUresult result, string action)
    {
        if (result != CUresult.CUDA_SUCCESS)
        {
            throw new FaultException(FaultCode.DeviceFault, $"The GPU failed in {action}: {result} ({(uint)result}). Start again.");
        }
    }
}

/// <summary>A caller's NCCL communicator: what it says of itself, how its ranks tell each other the first things over it, and a part of it for us.</summary>
/// <remarks>
/// The caller's own communicator is used until <see cref="Connect"/> returns and then no more; it is never finalized, destroyed or
/// aborted. It must not be in progress. Its ranks call the same methods in the same order.
/// </remarks>
internal sealed unsafe class NcclHost : IDisposable
{
    private readonly IStreamDevice _device;
    private readonly NcclCommunicator _communicator;
    private NcclSession? _session;

    /// <summary>Asks the communicator who it is.</summary>
    /// <param name="device">The GPU of <see cref="GpuOf"/>.</param>
    /// <param name="communicator">NCCL's handle.</param>
    /// <param name="lookForFault">Throws when another rank has ended the group; called now and then while this one waits.</param>
    /// <exception cref="FaultException">It is no communicator that works (203).</exception>
    public NcclHost(IStreamDevice device, nint communicator, Action lookForFault)
    {
        int rank;
        int size;
        Check(NcclNative.ncclCommUserRank(communicator, &rank), "rank");
        Check(NcclNative.ncclCommCount(communicator, &size), "size");
        _device = device;

        // The caller may launch graphs of its own communicators.
        _session = new NcclSession(device, mayCapture: false, lookForFault);
        _communicator = new NcclCommunicator(_session, communicator, rank, size);
    }

    /// <summary>This rank.</summary>
    public int Rank => _communicator.Rank;

    /// <summary>Number of ranks.</summary>
    public int Size => _communicator.Size;

    /// <summary>The GPU that a communicator is on, as the driver numbers them.</summary>
    /// <exception cref="FaultException">It is no communicator (2), or none that works (203).</exception>
    public static int GpuOf(nint communicator)
    {
        if (communicator == 0)
        {
            throw new FaultException(FaultCode.CommandLine, "The communicator of NCCL is null. Give one that ncclCommInitRank has made.");
        }

        int gpu;
        Check(NcclNative.ncclCommCuDevice(communicator, &gpu), "GPU");
        return gpu;
    }

    /// <summary>Gives every rank the bytes of rank 0.</summary>
    /// <param name="bytes">Looked at on rank 0 only.</param>
    public byte[] Broadcast(byte[] bytes)
    {
        byte[] length = BitConverter.GetBytes(bytes.Length);
        OverDevice(length, region => _communicator.Broadcast(region.Address, region.Bytes, 0, _device.EnterStream()));
        byte[] message = Rank == 0 ? bytes : new byte[BitConverter.ToInt32(length)];
        OverDevice(message, region => _communicator.Broadcast(region.Address, region.Bytes, 0, _device.EnterStream()));
        return message;
    }

    /// <summary>Gives every rank the number of each.</summary>
    public long[] Gather(long mine)
    {
        long[] all = new long[Size];
        all[Rank] = mine;
        byte[] bytes = MemoryMarshal.AsBytes(all.AsSpan()).ToArray();
        OverDevice(bytes, region => _communicator.AllGather(
            region.Address + (nint)(Rank * sizeof(long)), region.Address, sizeof(long), _device.EnterStream()));
        return MemoryMarshal.Cast<byte, long>(bytes).ToArray();
    }

    /// <summary>Splits a communicator off for the group: all ranks, in their order.</summary>
    /// <exception cref="FaultException">NCCL failed (203).</exception>
    public NcclTransport Connect(NcclSetUp setUp)
    {
        setUp.Control.Enter("connecting by NCCL");
        NcclCommunicator part = _session!.Split(_communicator, 0, Rank, Rank, Size);
        setUp.Control.Leave();
        var transport = NcclTransport.Over(_session, part, setUp);
        _session = null;
        return transport;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _session?.Dispose();
        _session = null;
    }

    private static void Check(ncclResult_t result, string what)
    {
        if (result != ncclResult_t.ncclSuccess)
        {
            throw new FaultException(
                FaultCode.CommunicationFault,
                $"The communicator does not tell its {what}: {NcclLibrary.Describe(result, 0)}. Give one that is connected and not yet destroyed.");
        }
    }

    // In place, through memory of the GPU; the copy back waits for the stream.
    private void OverDevice(byte[] bytes, Action<Region> operation)
    {
        Region region = _device.Allocate(bytes.Length, ElementType.Byte);
        fixed (byte* address = bytes)
        {
            var host = new Region((nint)address, bytes.Length, ElementType.Byte, MemoryPlace.Host);
            _device.Copy(host, region);
            operation(region);
            _device.Copy(region, host);
        }

        _device.Free(region);
    }
}
