using System;
using System.Collections.Generic;
using TreeAttention.Communication.Transports;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Staging;

/// <summary>A transport of host memory as one of device memory: what moves goes through page-locked memory, or the library below reaches the device's by itself.</summary>
/// <remarks>
/// The library below knows nothing of the device's stream, so before anything leaves, the device's enqueued work is waited for.
/// Staged, what has arrived is uploaded in the order of the stream, without waiting; staging memory grows to what is moved and is
/// kept: after the first operation of a size nothing is allocated. Direct (a CUDA-aware MPI), the library is given the device's own
/// addresses, and what has arrived is there when an operation returns; what a transport does with the processor itself, the merge
/// of states and copies inside a rank, is staged all the same. Regions of the host go through as they are. Traffic is the inner transport's.
/// </remarks>
internal sealed class DeviceTransport : ITransport
{
    private readonly ITransport _inner;
    private readonly IStagingDevice _device;
    private readonly long _directBytes;
    private readonly bool _ownsInner;
    private readonly Action<string>? _warn;
    private readonly StagingMemory _outgoing;
    private readonly StagingMemory _incoming;
    private Region _arriving;
    private Region _target;
    private PartialAttention? _state;

    /// <summary>Puts a device between a transport and who uses it.</summary>
    /// <param name="inner">Moves host memory.</param>
    /// <param name="device">Whose memory is moved.</param>
    /// <param name="directBytes">The library of <paramref name="inner"/> reads and writes device memory, in gathers parts of so many bytes at most (longer ones it
    /// first copies with the processor); 0: it cannot, and everything is staged.</param>
    /// <param name="ownsInner">Disposing of this disposes of the inner one.</param>
    /// <param name="warn">Told what the user should know: that GPUs cannot share memory.</param>
    public DeviceTransport(ITransport inner, IStagingDevice device, long directBytes = 0, bool ownsInner = false, Action<string>? warn = null)
    {
        (_inner, _device, _directBytes, _ownsInner, _warn) = (inner, device, directBytes, ownsInner, warn);
        _outgoing = StagingMemory.Pinned(device);
        _incoming = StagingMemory.Pinned(device);
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

    /// <summary>The library below reaches device memory by itself.</summary>
    internal bool IsDirect => _directBytes > 0;

    /// <inheritdoc/>
    public void Send(Region region, int to) => _inner.Send(TakeOut(region, IsDirect), to);

    /// <inheritdoc/>
    public void Receive(Region region, int from)
    {
        Region arriving = Room(region, IsDirect);
        _inner.Receive(arriving, from);
        BringIn(arriving, region);
    }

    /// <inheritdoc/>
    public void Exchange(Region outgoing, int to, Region incoming, int from)
    {
        StartExchange(outgoing, to, incoming, from);
        Complete();
    }

    /// <inheritdoc/>
    public void StartExchange(Region outgoing, int to, Region incoming, int from)
    {
        Region leaving = TakeOut(outgoing, IsDirect);
        (_arriving, _target) = (Room(incoming, IsDirect), incoming);
        _inner.StartExchange(leaving, to, _arriving, from);
    }

    /// <inheritdoc/>
    public void Complete()
    {
        _inner.Complete();
        BringIn(_arriving, _target);
        (_arriving, _target) = (Region.Empty, Region.Empty);
    }

    /// <inheritdoc/>
    public void AllReduce(Region region, ReduceOperation operation)
    {
        Region combined = TakeOut(region, IsDirect);
        _inner.AllReduce(combined, operation);
        BringIn(combined, region);
    }

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state)
    {
        Region staged = TakeOut(state.Region, isDirect: false);
        if (_state is null || _state.Region != staged || _state.Rows != state.Rows || _state.ValueDim != state.ValueDim)
        {
            _state = new PartialAttention(staged, state.Rows, state.ValueDim);
        }

        _inner.AllReduceStates(_state);
        BringIn(staged, state.Region);
    }

    /// <inheritdoc/>
    public void AllGather(Region mine, Region all)
    {
        bool isDirect = mine.Bytes <= _directBytes;
        Region leaving = TakeOut(mine, isDirect);
        Region arriving = Room(all, isDirect);
        _inner.AllGather(leaving, arriving);
        BringIn(arriving, all);
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        Region leaving = TakeOut(outgoing, isDirect: false);
        Region arriving = Room(incoming, isDirect: false);
        _inner.AllToAll(leaving, outgoingBytes, arriving, incomingBytes);
        BringIn(arriving, incoming);
    }

    /// <inheritdoc/>
    public void Broadcast(Region region, int root)
    {
        Region copied = Rank == root ? TakeOut(region, IsDirect) : Room(region, IsDirect);
        _inner.Broadcast(copied, root);
        if (Rank != root)
        {
            BringIn(copied, region);
        }
    }

    /// <inheritdoc/>
    public void Barrier() => _inner.Barrier();

    /// <inheritdoc/>
    public ITransport Split(int color, int key) => new DeviceTransport(_inner.Split(color, key), _device, _directBytes, ownsInner: true, _warn);

    /// <inheritdoc/>
    /// <remarks>Nothing is staged where the GPUs can write into each other's memory.</remarks>
    public IPeerMemory? SharePeerMemory(long bytesPerRank) => _device is IStreamDevice device
        ? DevicePeerMemory.Share(_inner, device, bytesPerRank, _warn)
        : _inner.SharePeerMemory(bytesPerRank);

    /// <inheritdoc/>
    public void Dispose()
    {
        _outgoing.Dispose();
        _incoming.Dispose();
        if (_ownsInner)
        {
            _inner.Dispose();
        }
    }

    // The bytes that leave, where the inner transport reaches them, when this returns.
    private Region TakeOut(Region region, bool isDirect)
    {
        if (region.Place != MemoryPlace.Device)
        {
            return region;
        }

        if (region.Bytes == 0)
        {
            return region with { Address = 0, Place = MemoryPlace.Pinned };
        }

        if (isDirect)
        {
            return HandOver(region);
        }

        Region staged = _outgoing.Take(region);
        _device.Copy(region, staged);
        _device.Synchronize();
        return staged;
    }

    // Memory for bytes that will arrive; whatever still reads or writes it in the stream's order is waited for.
    private Region Room(Region region, bool isDirect)
    {
        if (region.Place != MemoryPlace.Device)
        {
            return region;
        }

        if (region.Bytes == 0)
        {
            return region with { Address = 0, Place = MemoryPlace.Pinned };
        }

        if (isDirect)
        {
            return HandOver(region);
        }

        _device.Synchronize();
        return _incoming.Take(region);
    }

    // Nothing that is enqueued reads or writes the region any more; for the library it is an address like any other.
    private Region HandOver(Region region)
    {
        _device.Synchronize();
        return region with { Place = MemoryPlace.Host };
    }

    private void BringIn(Region arrived, Region region)
    {
        if (region.Place == MemoryPlace.Device && region.Bytes > 0 && arrived.Address != region.Address)
        {
            _device.Copy(arrived, region);
        }
    }
}
