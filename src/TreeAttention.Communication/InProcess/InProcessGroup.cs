using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.ExceptionServices;
using System.Threading;
using TreeAttention.Communication.Control;
using TreeAttention.Communication.Nodes;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.InProcess;

/// <summary>A group of ranks that are threads of this process: each rank's transport and control plane.</summary>
internal sealed class InProcessGroup : IDisposable
{
    private readonly GroupFault _fault = new();
    private readonly InProcessTransport[] _transports;
    private readonly InProcessControlPlane[] _controls;
    private readonly RankSeat[] _seats;

    private InProcessGroup(IReadOnlyList<int> nodes, StallLimits limits)
    {
        _seats = [.. nodes.Select((_, rank) => new RankSeat(rank))];
        var data = new GroupBoard(nodes, _fault, _seats, limits);
        var control = new GroupBoard(nodes, _fault, _seats, limits);
        byte[][] given = new byte[nodes.Count][];
        _transports = new InProcessTransport[nodes.Count];
        _controls = new InProcessControlPlane[nodes.Count];
        for (int rank = 0; rank < nodes.Count; rank++)
        {
            var traffic = new Traffic();
            _transports[rank] = new InProcessTransport(data, rank, traffic);
            _controls[rank] = new InProcessControlPlane(control, given, rank, traffic);
        }
    }

    /// <summary>The data plane of each rank; its thread disposes of it.</summary>
    public IReadOnlyList<InProcessTransport> Transports => _transports;

    /// <summary>The control plane of each rank.</summary>
    public IReadOnlyList<InProcessControlPlane> Controls => _controls;

    /// <summary>What everybody sees of each rank.</summary>
    public IReadOnlyList<RankSeat> Seats => _seats;

    /// <summary>The fault that ended the group; null while it works.</summary>
    public FaultException? Fault => _fault.First;

    /// <summary>Throws when a rank has ended the group: for waits that the group's own transports know nothing of.</summary>
    /// <exception cref="FaultException">Peer lost (200), with the fault that ended the group inside.</exception>
    public void ThrowIfEnded() => _fault.ThrowIfRaised();

    /// <summary>Makes a group.</summary>
    /// <param name="ranks">At least 1.</param>
    /// <param name="nodes">The node of each rank, for tests of topology; all on one when null.</param>
    /// <param name="limits">How long ranks may wait for one that does not arrive; for ever when null.</param>
    /// <exception cref="FaultException">There are not as many nodes as ranks (2).</exception>
    public static InProcessGroup Create(int ranks, IReadOnlyList<int>? nodes = null, StallLimits? limits = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(ranks, 1);
        if (nodes is not null && nodes.Count != ranks)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"{Setting.Nodes} names the node of {nodes.Count} ranks, but there are {ranks}: one for each rank.");
        }

        return new InProcessGroup(NodeNumbers.Of(nodes ?? new int[ranks]), limits ?? new StallLimits { IsWatching = false });
    }

    /// <summary>Runs one thread for each rank and returns when all have ended. What the first failing rank threw ends the others and is thrown.</summary>
    public void Run(Action<int> body)
    {
        ExceptionDispatchInfo? first = null;
        Thread[] threads = [.. Enumerable.Range(0, _transports.Length).Select(rank => new Thread(() =>
        {
            try
            {
                body(rank);
            }
            catch (Exception error)
            {
                if (Fault is null || ReferenceEquals(Fault, error))
                {
                    Interlocked.CompareExchange(ref first, ExceptionDispatchInfo.Capture(error), null);
                }

                _controls[rank].Abort((error as FaultException)?.Code ?? FaultCode.Bug, error.Message);
            }
            finally
            {
                _transports[rank].Dispose();
                _controls[rank].Dispose();
            }
        })
        {
            Name = $"rank {rank}",
            IsBackground = true, // a group that nobody leaves does not keep the process
        })];
        foreach (Thread thread in threads)
        {
            thread.Start();
        }

        foreach (Thread thread in threads)
        {
            thread.Join();
        }

        first?.Throw();
        _fault.ThrowIfRaised();
    }

    /// <summary>Leaves the group for every rank; a rank that still waits throws.</summary>
    public void Dispose()
    {
        for (int rank = 0; rank < _transports.Length; rank++)
        {
            _transports[rank].Dispose();
            _controls[rank].Dispose();
        }
    }
}

/// <summary>Which ranks of a group are still there.</summary>
/// <param name="seats">[ranks] the ranks.</param>
/// <param name="fault">Of the whole group.</param>
internal sealed class GroupMembers(RankSeat[] seats, GroupFault fault)
{
    /// <summary>In place of a rank: any of them.</summary>
    public const int Any = -1;

    private readonly bool[] _left = new bool[seats.Length];

    /// <summary>[ranks] the ranks, as those of the whole group.</summary>
    public RankSeat[] Seats => seats;

    /// <summary>The fault that ended the group and every group it was split from.</summary>
    public GroupFault Fault => fault;

    /// <summary>Tells that a rank takes part in nothing more.</summary>
    public void Leave(int rank) => Volatile.Write(ref _left[rank], true);

    /// <summary>The group was ended, or the rank that is waited for left.</summary>
    public bool IsLost(int peer) => fault.First is not null || FirstLeft(peer) >= 0;

    /// <summary>Throws for a wait that cannot end.</summary>
    /// <param name="waiter">The rank that waits.</param>
    /// <param name="peer">The one that is waited for, or any.</param>
    /// <exception cref="FaultException">Peer lost (200).</exception>
    public void ThrowLost(int waiter, int peer)
    {
        fault.ThrowIfRaised();
        int rank = seats[FirstLeft(peer)].Rank;
        throw fault.End(new FaultException(
            FaultCode.PeerLost,
            $"Rank {rank} left the group, but rank {seats[waiter].Rank} waits for it {seats[waiter].Where}: every rank must take part in the same "
            + "operations in the same order, and leave when all are done.")
        {
            Rank = rank,
        });
    }

    private int FirstLeft(int peer)
    {
        for (int rank = 0; rank < _left.Length; rank++)
        {
            if ((peer == Any || peer == rank) && Volatile.Read(ref _left[rank]))
            {
                return rank;
            }
        }

        return -1;
    }
}

/// <summary>The first fault of a group of in-process ranks, and who reads or writes another rank's memory just now.</summary>
/// <remarks>
/// A rank that leaves with a fault frees its memory. So it first raises the fault, after which nobody begins to touch
/// another rank's memory, and then waits for those that are at it.
/// </remarks>
internal sealed class GroupFault
{
    private FaultException? _first;
    private int _touching;

    /// <summary>The fault that ended the group; null while it works.</summary>
    public FaultException? First => Volatile.Read(ref _first);

    /// <summary>Ends the group; only the first call counts.</summary>
    public void Raise(FaultException fault) => Interlocked.CompareExchange(ref _first, fault, null);

    /// <summary>Ends the group with a fault that the caller then throws; nobody touches the caller's memory any more.</summary>
    public FaultException End(FaultException fault)
    {
        Raise(fault);
        AwaitNoTouch();
        return fault;
    }

    /// <summary>Throws when the group was ended.</summary>
    public void ThrowIfRaised()
    {
        if (First is { } fault)
        {
            AwaitNoTouch();
            if (fault.Code is FaultCode.NoProgress or FaultCode.PeerLost)
            {
                throw new FaultException(fault.Code, fault.Message, fault) { Rank = fault.Rank }; // no rank's own: all read the same
            }

            throw new FaultException(FaultCode.PeerLost, $"Rank {fault.Rank} ended the group: {fault.Message}", fault)
            {
                Rank = fault.Rank,
            };
        }
    }

    /// <summary>Before another rank's memory is read or written. Throws when the group was ended.</summary>
    public void BeginTouch()
    {
        // The count is visible before the fault is read; whoever ends the group raises the fault before reading the count.
        Interlocked.Increment(ref _touching);
        if (First is not null)
        {
            EndTouch();
            ThrowIfRaised();
        }
    }

    /// <summary>After it.</summary>
    public void EndTouch() => Interlocked.Decrement(ref _touching);

    private void AwaitNoTouch()
    {
        var spin = default(SpinWait);
        while (Volatile.Read(ref _touching) != 0)
        {
            spin.SpinOnce();
        }
    }
}

/// <summary>The control plane of in-process ranks: it has its own meeting place, so it works while the data plane hangs.</summary>
internal sealed class InProcessControlPlane : IControlPlane
{
    private readonly GroupBoard _group;
    private readonly byte[][] _given;
    private readonly Traffic _traffic;
    private readonly RankSeat _seat;

    internal InProcessControlPlane(GroupBoard group, byte[][] given, int rank, Traffic traffic)
    {
        _group = group;
        _seat = group.Members.Seats[rank];
        _given = given;
        _traffic = traffic;
        Rank = rank;
    }

    /// <inheritdoc/>
    public int Rank { get; }

    /// <inheritdoc/>
    public int Size => _group.Size;

    /// <summary>What the rank is doing: the operation entered last; empty between operations.</summary>
    public string Operation => _seat.Operation;

    /// <inheritdoc/>
    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine) => Gather(mine, "agreement");

    /// <inheritdoc/>
    public byte[] AwaitWork(ReadOnlyMemory<byte> mine) => [.. Gather(mine, Rank == 0 ? "agreement" : IControlPlane.WorkOperation)[0]];

    /// <inheritdoc/>
    public RankHealth HealthOf(int rank)
    {
        RankSeat seat = _group.Members.Seats[rank];
        return new RankHealth(rank, TimeSpan.FromMilliseconds(Environment.TickCount64 - seat.Door.ChangedAt), seat.Door.IsTaken ? seat.Door.Call : null);
    }

    /// <inheritdoc/>
    public void Enter(string operation) => _seat.Enter(operation);

    /// <inheritdoc/>
    public void Leave() => _seat.Leave();

    /// <summary>Ends the group: every rank that waits, or comes to wait, throws <see cref="FaultCode.PeerLost"/> with this fault inside.</summary>
    public void Abort(FaultCode code, string reason) => _group.Members.Fault.Raise(new FaultException(code, reason) { Rank = Rank });

    /// <inheritdoc/>
    public void Dispose() => _group.Members.Leave(Rank);

    private byte[][] Gather(ReadOnlyMemory<byte> mine, string operation)
    {
        _traffic.CountControl(mine.Length);
        _given[Rank] = mine.ToArray();
        string around = _seat.Operation;
        _seat.Enter(operation);
        _group.Meet(Rank);
        byte[][] all = [.. _given];
        _group.Meet(Rank);
        _seat.Enter(around);
        return all;
    }
}
