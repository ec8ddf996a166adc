using System;
using System.Runtime.InteropServices;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

/// <summary>A caller's NCCL communicator: what it says of itself, how its ranks tell each other the first things over it, and a part of it for us.</summary>
/// <remarks>
/// The caller's own communicator is used until <see cref="Connect"/> returns and then no more; it is never finalized, destroyed or
/// aborted. It must not be in progress. Its ranks call the same methods in the same order.
/// </remarks>
public sealed unsafe class NcclHost : IDisposable
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
        Check(Nccl.ncclCommUserRank(communicator, &rank), "rank");
        Check(Nccl.ncclCommCount(communicator, &size), "size");
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
        Check(Nccl.ncclCommCuDevice(communicator, &gpu), "GPU");
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
