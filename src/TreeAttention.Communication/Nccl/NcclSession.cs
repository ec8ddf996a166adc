using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Linq;
using System.Threading;
using TreeAttention.Distributed;
using TreeAttention.Interop;

namespace TreeAttention.Communication;

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
        ncclResult_t result = Nccl.ncclCommInitRankConfig(&handle, size, id, rank, &config);
        return Add(new NcclCommunicator(this, handle, rank, size), result, "connecting");
    }

    /// <summary>Joins a part of a communicator. Every rank of it calls this.</summary>
    internal NcclCommunicator Split(NcclCommunicator parent, int color, int key, int rank, int size)
    {
        device.EnterStream();
        nint handle;
        ncclConfig_t config = NcclLibrary.NonblockingConfig();
        ncclResult_t result = Nccl.ncclCommSplit(parent.Handle, color, key, &handle, &config);

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
