using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Testing.Ranks;

/// <summary>Another control plane, and what it was told.</summary>
internal sealed class RecordingControlPlane(IControlPlane inner) : IControlPlane
{
    public List<string> Operations { get; } = [];

    /// <summary>Operations that were entered and not left.</summary>
    public int Open { get; private set; }

    public int Rank => inner.Rank;

    public int Size => inner.Size;

    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine) => inner.AllGather(mine);

    public byte[] AwaitWork(ReadOnlyMemory<byte> mine) => inner.AwaitWork(mine);

    public void Enter(string operation)
    {
        Operations.Add(operation);
        Open++;
    }

    public void Leave() => Open--;

    public void Abort(FaultCode code, string reason) => inner.Abort(code, reason);

    public void Dispose()
    {
    }
}
