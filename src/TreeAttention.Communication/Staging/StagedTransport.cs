using System;
using System.Collections.Generic;
using TreeAttention.Communication.Mpi;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Staging;

/// <summary>A transport of host memory as one of device memory: what moves goes through page-locked memory, here and nowhere else.</summary>
/// <remarks>
/// Before anything leaves, the device's enqueued work is waited for; what has arrived is uploaded in the order of the
/// device's stream, without waiting. Regions of the host go through as they are. Staging memory grows to what is moved and is
/// kept: after the first operation of a size nothing is allocated. Traffic is the inner transport's.
/// </remarks>
public sealed class StagedTransport : ITransport
{
    private readonly ITransport _inner;
    private readonly IStagingDevice _device;
    private readonly bool _ownsInner;
    private readonly Action<string>? _warn;
    private readonly StagingMemory _outgoing;
    private readonly StagingMemory _incoming;
    private Region _arriving;
    private Region _target;
    private PartialAttention? _state;

    /// <summary>Stages between a transport and a device.</summary>
    /// <param name="inner">Moves host memory.</param>
    /// <param name="device">Whose memory is moved.</param>
    /// <param name="ownsInner">Disposing of this disposes of the inner one.</param>
    /// <param name="warn">Told what the user should know: that GPUs cannot share memory.</param>
    public StagedTransport(ITransport inner, IStagingDevice device, bool ownsInner = false, Action<string>? warn = null)
    {
        (_inner, _device, _ownsInner, _warn) = (inner, device, ownsInner, warn);
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

    /// <inheritdoc/>
    public void Send(Region region, int to) => _inner.Send(TakeOut(region), to);

    /// <inheritdoc/>
    public void Receive(Region region, int from)
    {
        Region staged = Room(region);
        _inner.Receive(staged, from);
        BringIn(staged, region);
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
        Region leaving = TakeOut(outgoing);
        (_arriving, _target) = (Room(incoming), incoming);
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
        Region staged = TakeOut(region);
        _inner.AllReduce(staged, operation);
        BringIn(staged, region);
    }

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state)
    {
        Region staged = TakeOut(state.Region);
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
        Region leaving = TakeOut(mine);
        Region staged = Room(all);
        _inner.AllGather(leaving, staged);
        BringIn(staged, all);
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        Region leaving = TakeOut(outgoing);
        Region staged = Room(incoming);
        _inner.AllToAll(leaving, outgoingBytes, staged, incomingBytes);
        BringIn(staged, incoming);
    }

    /// <inheritdoc/>
    public void Broadcast(Region region, int root)
    {
        Region staged = Rank == root ? TakeOut(region) : Room(region);
        _inner.Broadcast(staged, root);
        if (Rank != root)
        {
            BringIn(staged, region);
        }
    }

    /// <inheritdoc/>
    public void Barrier() => _inner.Barrier();

    /// <inheritdoc/>
    public ITransport Split(int color, int key) => new StagedTransport(_inner.Split(color, key), _device, ownsInner: true, _warn);

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

    // The bytes that leave, in host memory, when this returns.
    private Region TakeOut(Region region)
    {
        if (region.Place != MemoryPlace.Device)
        {
            return region;
        }

        if (region.Bytes == 0)
        {
            return region with { Address = 0, Place = MemoryPlace.Pinned };
        }

        Region staged = _outgoing.Take(region);
        _device.Copy(region, staged);
        _device.Synchronize();
        return staged;
    }

    // Host memory for bytes that will arrive; an upload out of it that is still enqueued is waited for.
    private Region Room(Region region)
    {
        if (region.Place != MemoryPlace.Device)
        {
            return region;
        }

        if (region.Bytes == 0)
        {
            return region with { Address = 0, Place = MemoryPlace.Pinned };
        }

        _device.Synchronize();
        return _incoming.Take(region);
    }

    private void BringIn(Region staged, Region region)
    {
        if (region.Place == MemoryPlace.Device && region.Bytes > 0)
        {
            _device.Copy(staged, region);
        }
    }
}

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

/// <summary>One piece of memory that grows with the regions it stands in for: by a quarter at least, for those of a growing cache are a little larger each time.</summary>
internal sealed class StagingMemory(Func<long, Region> allocate, Action<Region> free) : IDisposable
{
    private Region _memory;

    /// <summary>Page-locked memory of a device.</summary>
    internal static StagingMemory Pinned(IStagingDevice device) =>
        new(bytes => device.AllocatePinned(bytes, ElementType.Byte), device.FreePinned);

    /// <summary>Memory of a device.</summary>
    internal static StagingMemory On(IDevice device) => new(bytes => device.Allocate(bytes, ElementType.Byte), device.Free);

    /// <summary>As many bytes as the region has, of its type. The last taken is taken over.</summary>
    internal Region Take(Region region)
    {
        if (_memory.Bytes < region.Bytes)
        {
            long grown = Math.Max(region.Bytes, _memory.Bytes / 4 * 5);
            Dispose();
            _memory = allocate(grown);
        }

        return region with { Address = _memory.Address, Place = _memory.Place };
    }

    public void Dispose()
    {
        if (_memory.Address != 0)
        {
            free(_memory);
            _memory = Region.Empty;
        }
    }
}
