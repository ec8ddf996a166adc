using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.ExceptionServices;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>A group of ranks that are threads of this process: each rank's transport and control plane.</summary>
public sealed class InProcessGroup : IDisposable
{
    private readonly GroupFault _fault = new();
    private readonly InProcessTransport[] _transports;
    private readonly InProcessControlPlane[] _controls;

    private InProcessGroup(IReadOnlyList<int> nodes)
    {
        var data = new GroupBoard(nodes, _fault);
        var control = new GroupBoard(nodes, _fault);
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

    /// <summary>The fault that ended the group; null while it works.</summary>
    public FaultException? Fault => _fault.First;

    /// <summary>Throws when a rank has ended the group: for waits that the group's own transports know nothing of.</summary>
    /// <exception cref="FaultException">Peer lost (200), with the fault that ended the group inside.</exception>
    public void ThrowIfEnded() => _fault.ThrowIfRaised();

    /// <summary>Makes a group.</summary>
    /// <param name="ranks">At least 1.</param>
    /// <param name="nodes">The node of each rank, for tests of topology; all on one when null.</param>
    /// <exception cref="FaultException">There are not as many nodes as ranks (2).</exception>
    public static InProcessGroup Create(int ranks, IReadOnlyList<int>? nodes = null)
    {
        ArgumentOutOfRangeException.ThrowIfLessThan(ranks, 1);
        if (nodes is not null && nodes.Count != ranks)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"--nodes names the node of {nodes.Count} ranks, but there are {ranks}: one for each rank.");
        }

        // Nodes are numbered in order of first appearance, whatever they were called.
        int[] named = [.. nodes ?? new int[ranks]];
        int[] seen = [.. named.Distinct()];
        return new InProcessGroup([.. named.Select(node => Array.IndexOf(seen, node))]);
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
