using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.CompilerServices;
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
public sealed unsafe class MpiTransport : ITransport
{
    /// <summary>Bytes of the longest piece that is handed to MPI, whose counts are 32-bit.</summary>
    public const int DefaultPieceBytes = 1 << 30;

    private readonly MpiWorld _world;
    private readonly MpiChannel _channel;
    private readonly bool _ownsCommunicator;
    private readonly MpiRequests _exchange = new();
    private readonly int[] _nodes;
    private bool _disposed;

    internal MpiTransport(MpiWorld world, MpiChannel channel, int[] nodes, Traffic traffic, bool ownsCommunicator)
    {
        _world = world;
        _channel = channel;
        _nodes = nodes;
        Traffic = traffic;
        _ownsCommunicator = ownsCommunicator;
    }

    /// <inheritdoc/>
    public string Name => "mpi";

    /// <inheritdoc/>
    public int Rank => _channel.Rank;

    /// <inheritdoc/>
    public int Size => _channel.Size;

    /// <inheritdoc/>
    public IReadOnlyList<int> Nodes => _nodes;

    /// <inheritdoc/>
    public Traffic Traffic { get; }

    /// <inheritdoc/>
    public bool CanReduceStates => true;

    /// <inheritdoc/>
    public void Send(Region region, int to)
    {
        RequireHost(region);
        _channel.Send(region.Address, region.Bytes, to);
        Traffic.CountMessage(region.Bytes);
    }

    /// <inheritdoc/>
    public void Receive(Region region, int from)
    {
        RequireHost(region);
        _channel.Receive(region.Address, region.Bytes, from);
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
        RequireHost(outgoing);
        RequireHost(incoming);
        if (_exchange.Count != 0)
        {
            throw new InvalidOperationException("An exchange is under way: complete it before the next one.");
        }

        _exchange.Receive(_channel, incoming.Address, incoming.Bytes, from, MpiTags.Message);
        _exchange.Send(_channel, outgoing.Address, outgoing.Bytes, to, MpiTags.Message);
        if (outgoing.Bytes > 0)
        {
            Traffic.CountMessage(outgoing.Bytes);
        }
    }

    /// <inheritdoc/>
    public void Complete() => _exchange.WaitAll(_channel, "exchange");

    /// <inheritdoc/>
    public void AllReduce(Region region, ReduceOperation operation)
    {
        RequireHost(region);
        if (region.Type != ElementType.Float32)
        {
            throw new ArgumentException($"An all-reduce combines f32 elements, not {region.Type.ShortName()}.", nameof(region));
        }

        MpiConstants mpi = _channel.Library.Constants;
        _channel.AllReduceFloats(region.Address, region.Count, operation == ReduceOperation.Sum ? mpi.Sum : mpi.Max);
        Traffic.CountCollective(region.Bytes);
    }

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state)
    {
        RequireHost(state.Region);
        _world.States.AllReduce(_channel, state);
        Traffic.CountCollective(state.Region.Bytes);
    }

    /// <inheritdoc/>
    public void AllGather(Region mine, Region all)
    {
        RequireHost(mine);
        RequireHost(all);
        if (all.Bytes != mine.Bytes * Size)
        {
            throw new ArgumentException($"{Size} parts of {mine.Bytes:N0} bytes do not make {all.Bytes:N0} bytes.", nameof(all));
        }

        _channel.AllGather(mine.Address, mine.Bytes, all.Address);
        Traffic.CountCollective(mine.Bytes);
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        RequireHost(outgoing);
        RequireHost(incoming);
        RequireParts(outgoing, outgoingBytes, nameof(outgoingBytes));
        RequireParts(incoming, incomingBytes, nameof(incomingBytes));
        if (outgoingBytes[Rank] != incomingBytes[Rank])
        {
            throw new ArgumentException("A rank sends itself as many bytes as it receives from itself.", nameof(incomingBytes));
        }

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
        Traffic.CountCollective(Sum(outgoingBytes) - outgoingBytes[Rank]);
    }

    /// <inheritdoc/>
    public void Broadcast(Region region, int root)
    {
        RequireHost(region);
        _channel.Broadcast(region.Address, region.Bytes, root);
        Traffic.CountCollective(Rank == root ? region.Bytes : 0);
    }

    /// <inheritdoc/>
    public void Barrier()
    {
        _channel.Barrier();
        Traffic.CountCollective(0);
    }

    /// <inheritdoc/>
    public ITransport Split(int color, int key)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(color);
        nint communicator = 0;
        _channel.Check(MpiNative.CommSplit(_channel.Communicator, color, key, &communicator), "split");
        var part = new MpiChannel(_channel.Library, communicator, _channel.IsPolite, _channel.PieceBytes, _channel.WhileWaiting);
        int[] nodes = new int[part.Size];
        int node = _nodes[Rank];
        fixed (int* all = nodes)
        {
            part.AllGather((nint)(&node), sizeof(int), (nint)all);
        }

        return new MpiTransport(_world, part, MpiNodes.Number(nodes), Traffic, ownsCommunicator: true);
    }

    /// <inheritdoc/>
    public IPeerMemory? SharePeerMemory(long bytesPerRank)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(bytesPerRank);
        return _nodes.All(node => node == 0) ? MpiPeerMemory.Share(_channel, bytesPerRank) : null;
    }

    /// <inheritdoc/>
    /// <remarks>Frees the communicator of a <see cref="Split"/>, which every rank of it does; the world's own is the world's.</remarks>
    public void Dispose()
    {
        if (!_disposed && _ownsCommunicator && _world.MayCall)
        {
            nint communicator = _channel.Communicator;
            _channel.Check(MpiNative.CommFree(&communicator), "freeing a communicator");
        }

        _disposed = true;
    }

    private static long Sum(ReadOnlySpan<long> bytes)
    {
        long sum = 0;
        foreach (long part in bytes)
        {
            sum += part;
        }

        return sum;
    }

    private void RequireParts(Region region, ReadOnlySpan<long> bytes, string name)
    {
        if (bytes.Length != Size || Sum(bytes) != region.Bytes)
        {
            throw new ArgumentException(
                $"{bytes.Length} parts of {Sum(bytes):N0} bytes together do not fit {Size} ranks and a region of {region.Bytes:N0} bytes.", name);
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void RequireHost(Region region)
    {
        if (region.Place == MemoryPlace.Device)
        {
            throw new FaultException(
                FaultCode.Unavailable,
                "The MPI transport moves host memory, but the region lies on a device. Copy it to the host first, or use --transport nccl.");
        }
    }
}
