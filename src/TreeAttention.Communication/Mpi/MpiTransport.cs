using System;
using System.Linq;
using TreeAttention.Communication.Nodes;
using TreeAttention.Communication.Transports;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Mpi;

namespace TreeAttention.Communication.Mpi;

/// <summary>Ranks that are processes of an MPI job, or a part of them. Regions lie in host memory.</summary>
/// <remarks>
/// The all-reduces of Open MPI and MPICH compute every element along one tree of additions, or on both sides of a pair with the
/// operands exchanged, so all ranks get the same bits for finite values; MPI recommends that and does not demand it. With
/// NaN in a maximum ranks may differ. From call to call of the same length the bits repeat on the same ranks.
/// Not for use by two threads at once.
/// </remarks>
internal sealed unsafe class MpiTransport : TransportBase
{
    /// <summary>Bytes of the longest piece that is handed to MPI, whose counts are 32-bit.</summary>
    public const int DefaultPieceBytes = 1 << 30;

    private readonly MpiWorld _world;
    private readonly MpiChannel _channel;
    private readonly bool _ownsCommunicator;
    private readonly MpiRequests _exchange = new();
    private bool _disposed;

    internal MpiTransport(MpiWorld world, MpiChannel channel, int[] nodes, Traffic traffic, bool ownsCommunicator)
        : base(channel.Rank, nodes, traffic)
    {
        _world = world;
        _channel = channel;
        _ownsCommunicator = ownsCommunicator;
    }

    /// <inheritdoc/>
    public override string Name => "mpi";

    /// <inheritdoc/>
    public override bool CanReduceStates => true;

    /// <inheritdoc/>
    public override void Send(Region region, int to)
    {
        RequireReachable(region);
        _channel.Send(region.Address, region.Bytes, to);
        Traffic.CountMessage(region.Bytes);
    }

    /// <inheritdoc/>
    public override void Receive(Region region, int from)
    {
        RequireReachable(region);
        _channel.Receive(region.Address, region.Bytes, from);
    }

    /// <inheritdoc/>
    public override ITransport Split(int color, int key)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(color);
        nint communicator = 0;
        _channel.Check(MpiNative.CommSplit(_channel.Communicator, color, key, &communicator), "split");
        var part = new MpiChannel(_channel.Library, communicator, _channel.IsPolite, _channel.PieceBytes, _channel.WhileWaiting);
        int[] nodes = new int[part.Size];
        int node = Nodes[Rank];
        fixed (int* all = nodes)
        {
            part.AllGather((nint)(&node), sizeof(int), (nint)all);
        }

        return new MpiTransport(_world, part, NodeNumbers.Of(nodes), Traffic, ownsCommunicator: true);
    }

    /// <inheritdoc/>
    public override IPeerMemory? SharePeerMemory(long bytesPerRank)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytesPerRank);
        return Nodes.All(node => node == 0) ? MpiPeerMemory.Share(_channel, bytesPerRank) : null;
    }

    /// <inheritdoc/>
    /// <remarks>Frees the communicator of a <see cref="Split"/>, which every rank of it does; the world's own is the world's.</remarks>
    public override void Dispose()
    {
        if (!_disposed && _ownsCommunicator && _world.MayCall)
        {
            nint communicator = _channel.Communicator;
            _channel.Check(MpiNative.CommFree(&communicator), "freeing a communicator");
        }

        _disposed = true;
    }

    /// <inheritdoc/>
    protected override void RequireReachable(Region region)
    {
        if (region.Place == MemoryPlace.Device)
        {
            throw new FaultException(
                FaultCode.Unavailable,
                $"The MPI transport moves host memory, but the region lies on a device. Copy it to the host first, or use {Setting.TransportNccl}.");
        }
    }

    /// <inheritdoc/>
    protected override void Begin(Region outgoing, int to, Region incoming, int from)
    {
        _exchange.Receive(_channel, incoming.Address, incoming.Bytes, from, MpiTags.Message);
        _exchange.Send(_channel, outgoing.Address, outgoing.Bytes, to, MpiTags.Message);
    }

    /// <inheritdoc/>
    protected override void End() => _exchange.WaitAll(_channel, "exchange");

    /// <inheritdoc/>
    protected override void Combine(Region region, ReduceOperation operation)
    {
        MpiConstants mpi = _channel.Library.Constants;
        _channel.AllReduceFloats(region.Address, region.Count, operation == ReduceOperation.Sum ? mpi.Sum : mpi.Max);
    }

    /// <inheritdoc/>
    protected override void CombineStates(PartialAttention state) => _world.States.AllReduce(_channel, state);

    /// <inheritdoc/>
    protected override void Gather(Region mine, Region all) => _channel.AllGather(mine.Address, mine.Bytes, all.Address);

    /// <inheritdoc/>
    protected override void Scatter(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        // The exchange under way, if any, keeps its own requests: this is a new list whose room is kept too.
        MpiRequests requests = _world.PartRequests;
        nint at = incoming.Address;
        for (int rank = 0; rank < Size; rank++)
        {
            if (rank != Rank)
            {
                requests.Receive(_channel, at, incomingBytes[rank], rank, MpiTags.AllToAll);
            }

            at += (nint)incomingBytes[rank];
        }

        at = outgoing.Address;
        for (int rank = 0; rank < Size; rank++)
        {
            if (rank != Rank)
            {
                requests.Send(_channel, at, outgoingBytes[rank], rank, MpiTags.AllToAll);
            }
            else
            {
                nint own = incoming.Address + (nint)Sum(incomingBytes[..rank]);
                Buffer.MemoryCopy((void*)at, (void*)own, incomingBytes[rank], outgoingBytes[rank]);
            }

            at += (nint)outgoingBytes[rank];
        }

        requests.WaitAll(_channel, "all-to-all");
    }

    /// <inheritdoc/>
    protected override void Copy(Region region, int root) => _channel.Broadcast(region.Address, region.Bytes, root);

    /// <inheritdoc/>
    protected override void Meet() => _channel.Barrier();
}
