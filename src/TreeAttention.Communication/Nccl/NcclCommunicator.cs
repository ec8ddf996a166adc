using System;
using System.Collections.Generic;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Interop.Nccl;

namespace TreeAttention.Communication.Nccl;

/// <summary>One nonblocking communicator: its calls checked, and waited for where they are still in progress. Addresses are of device memory.</summary>
internal sealed unsafe class NcclCommunicator(NcclSession session, nint handle, int rank, int size)
{
    private const ncclDataType_t Bytes = ncclDataType_t.ncclUint8;

    /// <summary>NCCL's handle; 0 after the end.</summary>
    internal nint Handle { get; private set; } = handle;

    /// <summary>This rank.</summary>
    internal int Rank => rank;

    /// <summary>Number of ranks.</summary>
    internal int Size => size;

    /// <summary>Combines fp32 elements, in place.</summary>
    internal void AllReduce(nint address, long count, ncclRedOp_t operation, nint stream)
    {
        session.ThrowIfEnded();
        ncclResult_t result = NcclNative.ncclAllReduce(
            (void*)address, (void*)address, (nuint)count, ncclDataType_t.ncclFloat32, operation, Handle, stream);
        Settle(result, "all-reduce", count * sizeof(float));
    }

    /// <summary>Gathers as many bytes of every rank, in rank order.</summary>
    internal void AllGather(nint mine, nint all, long bytes, nint stream)
    {
        session.ThrowIfEnded();
        Settle(NcclNative.ncclAllGather((void*)mine, (void*)all, (nuint)bytes, Bytes, Handle, stream), "all-gather", bytes);
    }

    /// <summary>Copies bytes of the root to every rank, in place.</summary>
    internal void Broadcast(nint address, long bytes, int root, nint stream)
    {
        session.ThrowIfEnded();
        Settle(NcclNative.ncclBroadcast((void*)address, (void*)address, (nuint)bytes, Bytes, root, Handle, stream), "broadcast", bytes);
    }

    /// <summary>Sends to one rank and receives from another, both at once; an empty region is no message.</summary>
    internal void Exchange(Region outgoing, int to, Region incoming, int from, nint stream)
    {
        OpenGroup();
        Send(outgoing.Address, outgoing.Bytes, to, stream);
        Receive(incoming.Address, incoming.Bytes, from, stream);
        CloseGroup("exchange", Math.Max(outgoing.Bytes, incoming.Bytes));
    }

    /// <summary>Begins a group of <see cref="Send"/> and <see cref="Receive"/> that progress together.</summary>
    internal void OpenGroup()
    {
        session.ThrowIfEnded();
        Settle(NcclNative.ncclGroupStart(), "group", 0);
    }

    /// <summary>A part of a group.</summary>
    internal void Send(nint address, long bytes, int to, nint stream)
    {
        if (bytes > 0)
        {
            CheckInGroup(NcclNative.ncclSend((void*)address, (nuint)bytes, Bytes, to, Handle, stream), "send", bytes);
        }
    }

    /// <summary>A part of a group.</summary>
    internal void Receive(nint address, long bytes, int from, nint stream)
    {
        if (bytes > 0)
        {
            CheckInGroup(NcclNative.ncclRecv((void*)address, (nuint)bytes, Bytes, from, Handle, stream), "receive", bytes);
        }
    }

    /// <summary>Enqueues the group.</summary>
    internal void CloseGroup(string operation, long bytes) => Settle(NcclNative.ncclGroupEnd(), operation, bytes);

    /// <summary>Waits while a call is in progress and throws when it failed.</summary>
    internal void Settle(ncclResult_t result, string operation, long bytes)
    {
        var wait = default(SpinWait);
        while (result == ncclResult_t.ncclInProgress)
        {
            session.Look();
            ncclResult_t asked = NcclNative.ncclCommGetAsyncError(Handle, &result);
            result = asked == ncclResult_t.ncclSuccess ? result : asked;
            wait.SpinOnce(sleep1Threshold: 1000); // about a millisecond of turns; connecting may take seconds
        }

        if (result != ncclResult_t.ncclSuccess)
        {
            throw Failure(result, operation, bytes);
        }
    }

    /// <summary>Throws when something that was enqueued failed.</summary>
    internal void Look()
    {
        ncclResult_t state;
        ncclResult_t result = NcclNative.ncclCommGetAsyncError(Handle, &state);
        state = result == ncclResult_t.ncclSuccess ? state : result;
        if (state is not (ncclResult_t.ncclSuccess or ncclResult_t.ncclInProgress))
        {
            throw Failure(state, "an enqueued operation", 0);
        }
    }

    /// <summary>Leaves in order, which waits for the others; aborts when they do not come in time.</summary>
    internal void Leave(Func<bool> isLate)
    {
        ncclResult_t result = NcclNative.ncclCommFinalize(Handle);
        while (result == ncclResult_t.ncclInProgress && !isLate())
        {
            Thread.Yield();
            ncclResult_t asked = NcclNative.ncclCommGetAsyncError(Handle, &result);
            result = asked == ncclResult_t.ncclSuccess ? result : asked;
        }

        if (result == ncclResult_t.ncclSuccess)
        {
            _ = NcclNative.ncclCommDestroy(Handle);
            Handle = 0;
        }

        Abort();
    }

    /// <summary>Ends at once; what is enqueued ends too.</summary>
    internal void Abort()
    {
        if (Handle != 0)
        {
            _ = NcclNative.ncclCommAbort(Handle);
            Handle = 0;
        }
    }

    // The group is closed first: no call may be left open for the calls of the abort.
    private void CheckInGroup(ncclResult_t result, string operation, long bytes)
    {
        if (result is not (ncclResult_t.ncclSuccess or ncclResult_t.ncclInProgress))
        {
            FaultException failure = NcclFaults.Of(this, result, operation, bytes);
            _ = NcclNative.ncclGroupEnd();
            throw session.End(failure);
        }
    }

    private FaultException Failure(ncclResult_t result, string operation, long bytes)
    {
        FaultException failure = NcclFaults.Of(this, result, operation, bytes);
        if (result is ncclResult_t.ncclRemoteError or ncclResult_t.ncclSystemError)
        {
            session.AwaitReason();
        }

        return session.End(failure);
    }
}

/// <summary>What goes wrong with NCCL, in the words that the user reads.</summary>
internal static class NcclFaults
{
    private static string WithoutNccl => $"or do without NCCL: {Setting.TransportMpi} under mpiexec, {Setting.TransportInProcess} alone";

    /// <summary>A call, or what it enqueued, failed.</summary>
    internal static FaultException Of(NcclCommunicator communicator, ncclResult_t result, string operation, long bytes)
    {
        string what = bytes > 0 ? $"{operation} of {bytes:N0} bytes" : operation;
        return new FaultException(
            FaultCode.CommunicationFault,
            $"Rank {communicator.Rank} of {communicator.Size}: {what} failed in NCCL with {NcclLibrary.Describe(result, communicator.Handle)}. "
            + "Look for the first rank that failed; NCCL_DEBUG=INFO tells more.")
        { Rank = communicator.Rank };
    }

    /// <summary>None of the candidates can be loaded.</summary>
    internal static FaultException NoLibrary(IReadOnlyList<string> candidates, DllNotFoundException error) => new(
        FaultCode.Unavailable,
        $"{Setting.TransportNccl}: {string.Join(", ", candidates)} was not found. Install NCCL 2 (libnccl2), name the library with "
        + $"TREEATTN_NCCL_LIBRARY, {WithoutNccl}.",
        error);

    /// <summary>The library is older than the calls that are made.</summary>
    internal static FaultException TooOld(string file, int version) => new(
        FaultCode.Unavailable,
        $"{Setting.TransportNccl}: {file} is NCCL {NcclLibrary.Describe(version)}, but {NcclLibrary.Describe(NcclLibrary.OldestVersion)} is the oldest that "
        + $"will do. Install a newer one, name it with TREEATTN_NCCL_LIBRARY, {WithoutNccl}.");

    /// <summary>Two ranks on one GPU, which NCCL refuses on single ranks only; null when there are none.</summary>
    /// <param name="places">Machine and GPU of each rank.</param>
    internal static FaultException? SharedGpu(IReadOnlyList<string> places)
    {
        IGrouping<string, int>? shared = Enumerable.Range(0, places.Count).GroupBy(rank => places[rank]).FirstOrDefault(group => group.Count() > 1);
        return shared is null ? null : new FaultException(
            FaultCode.Unavailable,
            $"{Setting.TransportNccl}: ranks {string.Join(", ", shared)} compute on the same GPU ({shared.Key}), but NCCL wants a GPU for each rank. Start no "
            + $"more ranks on a machine than it has GPUs, or let them share one without NCCL ({Setting.Transport} mpi or in-process); for a test, give each "
            + "process an NCCL_HOSTID of its own, or NCCL_MULTI_RANK_GPU_ENABLE=1 from NCCL 2.30 on.")
        { IsAgreed = true };
    }
}
