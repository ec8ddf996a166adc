using System;
using System.Collections.Generic;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>A transport whose library reads and writes device memory by itself (a CUDA-aware MPI): it is given the device's own addresses.</summary>
/// <remarks>
/// The library knows nothing of the device's stream, so the enqueued work is waited for before anything is handed over; what has
/// arrived is there when an operation returns. What the transport does with the processor itself, the merge of states
/// and copies inside a rank, goes through page-locked memory as in <see cref="StagedTransport"/>.
/// </remarks>
public sealed class DirectTransport : ITransport
{
    private readonly ITransport _inner;
    private readonly IStagingDevice _device;
    private readonly bool _ownsInner;
    private readonly StagedTransport _staged;

    /// <summary>Hands a device's memory to a transport.</summary>
    /// <param name="inner">Its library can reach device memory.</param>
    /// <param name="device">Whose memory is moved.</param>
    /// <param name="ownsInner">Disposing of this disposes of the inner one.</param>
    public DirectTransport(ITransport inner, IStagingDevice device, bool ownsInner = false)
    {
        (_inner, _device, _ownsInner) = (inner, device, ownsInner);
        _staged = new StagedTransport(inner, device);
    }

    /// <inheritdoc/>
    public string Name => _inner.Name;

    /// <inheritdoc/>
    public int Rank => _inner.Rank;

    /// <inheritdoc/>
    public int Size => _inner.Size;

    /// <inheritdoc/>
    public IReadOnlyList<int> Nodes => _inner.Nodes;

    /// <inheritdoc/>
    public Traffic Traffic => _inner.Traffic;

    /// <inheritdoc/>
    public bool CanReduceStates => _inner.CanReduceStates;

    /// <inheritdoc/>
    public void Send(Region region, int to) => _inner.Send(HandOver(region), to);

    /// <inheritdoc/>
    public void Receive(Region region, int from) => _inner.Receive(HandOver(region), from);

    /// <inheritdoc/>
    public void Exchange(Region outgoing, int to, Region incoming, int from)
    {
        StartExchange(outgoing, to, incoming, from);
        Complete();
    }

    /// <inheritdoc/>
    public void StartExchange(Region outgoing, int to, Region incoming, int from) =>
        _inner.StartExchange(HandOver(outgoing), to, HandOver(incoming), from);

    /// <inheritdoc/>
    public void Complete() => _inner.Complete();

    /// <inheritdoc/>
    public void AllReduce(Region region, ReduceOperation operation) => _inner.AllReduce(HandOver(region), operation);

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state) => _staged.AllReduceStates(state);

    /// <inheritdoc/>
    public void AllGather(Region mine, Region all)
    {
        // A part that goes in pieces is first copied inside the rank.
        if (mine.Bytes > MpiTransport.DefaultPieceBytes)
        {
            _staged.AllGather(mine, all);
        }
        else
        {
            _inner.AllGather(HandOver(mine), HandOver(all));
        }
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes) =>
        _staged.AllToAll(outgoing, outgoingBytes, incoming, incomingBytes);

    /// <inheritdoc/>
    public void Broadcast(Region region, int root) => _inner.Broadcast(HandOver(region), root);

    /// <inheritdoc/>
    public void Barrier() => _inner.Barrier();

    /// <inheritdoc/>
    public ITransport Split(int color, int key) => new DirectTransport(_inner.Split(color, key), _device, ownsInner: true);

    /// <inheritdoc/>
    public IPeerMemory? SharePeerMemory(long bytesPerRank) => _staged.SharePeerMemory(bytesPerRank);

    /// <inheritdoc/>
    public void Dispose()
    {
        _staged.Dispose();
        if (_ownsInner)
        {
            _inner.Dispose();
        }
    }

    // Nothing that is enqueued reads or writes the region any more; for the library it is an address like any other.
    private Region HandOver(Region region)
    {
        if (region.Place != MemoryPlace.Device)
        {
            return region;
        }

        _device.Synchronize();
        return region with { Place = MemoryPlace.Host };
    }
}
