using System;
using System.Collections.Generic;
using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>The control plane of in-process ranks: it has its own meeting place, so it works while the data plane hangs.</summary>
public sealed class InProcessControlPlane : IControlPlane
{
    private readonly GroupBoard _group;
    private readonly byte[][] _given;
    private readonly Traffic _traffic;
    private string _operation = string.Empty;

    internal InProcessControlPlane(GroupBoard group, byte[][] given, int rank, Traffic traffic)
    {
        _group = group;
        _given = given;
        _traffic = traffic;
        Rank = rank;
    }

    /// <inheritdoc/>
    public int Rank { get; }

    /// <inheritdoc/>
    public int Size => _group.Size;

    /// <summary>What the rank is doing: the operation entered last; empty between operations.</summary>
    public string Operation => Volatile.Read(ref _operation);

    /// <inheritdoc/>
    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine)
    {
        _traffic.CountControl(mine.Length);
        _given[Rank] = mine.ToArray();
        _group.Meet(Rank);
        byte[][] all = [.. _given];
        _group.Meet(Rank);
        return all;
    }

    /// <inheritdoc/>
    public void Enter(string operation) => Volatile.Write(ref _operation, operation);

    /// <inheritdoc/>
    public void Leave() => Volatile.Write(ref _operation, string.Empty);

    /// <summary>Ends the group: every rank that waits, or comes to wait, throws <see cref="FaultCode.PeerLost"/> with this fault inside.</summary>
    public void Abort(FaultCode code, string reason) => _group.Members.Fault.Raise(new FaultException(code, reason) { Rank = Rank });

    /// <inheritdoc/>
    public void Dispose() => _group.Members.Leave(Rank);
}
