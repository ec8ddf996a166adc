using System;
using System.Collections.Generic;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Transports;

/// <summary>What every transport does alike: it holds a call against the contract of <see cref="ITransport"/>, hands it to its library, and counts it.</summary>
/// <remarks>A call that breaks the contract throws before anything is moved. Of exchanges one is under way at most; the other operations may run beside it.</remarks>
/// <param name="rank">This rank.</param>
/// <param name="nodes">[size] the node of each rank, by first appearance.</param>
/// <param name="traffic">What this rank sends is counted here.</param>
internal abstract class TransportBase(int rank, IReadOnlyList<int> nodes, Traffic traffic) : ITransport
{
    private bool _underWay;

    /// <inheritdoc/>
    public abstract string Name { get; }

    /// <inheritdoc/>
    public int Rank { get; } = rank;

    /// <inheritdoc/>
    public int Size { get; } = nodes.Count;

    /// <inheritdoc/>
    public IReadOnlyList<int> Nodes { get; } = nodes;

    /// <inheritdoc/>
    public Traffic Traffic { get; } = traffic;

    /// <inheritdoc/>
    public abstract bool CanReduceStates { get; }

    /// <inheritdoc/>
    public virtual bool IsStreamOrdered => false;

    /// <inheritdoc/>
    public virtual bool IsCapturable => false;

    /// <inheritdoc/>
    public virtual void Send(Region region, int to) => Exchange(region, to, Region.Empty, to);

    /// <inheritdoc/>
    public virtual void Receive(Region region, int from) => Exchange(Region.Empty, from, region, from);

    /// <inheritdoc/>
    public virtual void Exchange(Region outgoing, int to, Region incoming, int from)
    {
        StartExchange(outgoing, to, incoming, from);
        Complete();
    }

    /// <inheritdoc/>
    public void StartExchange(Region outgoing, int to, Region incoming, int from)
    {
        RequireReachable(outgoing);
        RequireReachable(incoming);
        if (_underWay)
        {
            throw new InvalidOperationException("An exchange is under way: complete it before the next one.");
        }

        _underWay = true;
        CountMessage(outgoing);
        Begin(outgoing, to, incoming, from);
    }

    /// <inheritdoc/>
    public void Complete()
    {
        if (_underWay)
        {
            _underWay = false;
            End();
        }
    }

    /// <inheritdoc/>
    public void AllReduce(Region region, ReduceOperation operation)
    {
        RequireReachable(region);
        if (region.Type != ElementType.Float32)
        {
            throw new ArgumentException($"An all-reduce combines f32 elements, not {region.Type.ShortName()}.", nameof(region));
        }

        Combine(region, operation);
        Traffic.CountCollective(region.Bytes);
    }

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state)
    {
        RequireReachable(state.Region);
        CombineStates(state);
        Traffic.CountCollective(state.Region.Bytes);
    }

    /// <inheritdoc/>
    public void AllGather(Region mine, Region all)
    {
        RequireReachable(mine);
        RequireReachable(all);
        if (all.Bytes != mine.Bytes * Size)
        {
            throw new ArgumentException($"{Size} parts of {mine.Bytes:N0} bytes do not make {all.Bytes:N0} bytes.", nameof(all));
        }

        Gather(mine, all);
        Traffic.CountCollective(mine.Bytes);
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        RequireReachable(outgoing);
        RequireReachable(incoming);
        RequireParts(outgoing, outgoingBytes, nameof(outgoingBytes));
        RequireParts(incoming, incomingBytes, nameof(incomingBytes));
        if (outgoingBytes[Rank] != incomingBytes[Rank])
        {
            throw new ArgumentException("A rank sends itself as many bytes as it receives from itself.", nameof(incomingBytes));
        }

        Scatter(outgoing, outgoingBytes, incoming, incomingBytes);
        Traffic.CountCollective(outgoing.Bytes - outgoingBytes[Rank]);
    }

    /// <inheritdoc/>
    public void Broadcast(Region region, int root)
    {
        RequireReachable(region);
        Copy(region, root);
        Traffic.CountCollective(Rank == root ? region.Bytes : 0);
    }

    /// <inheritdoc/>
    public void Barrier()
    {
        Meet();
        Traffic.CountCollective(0);
    }

    /// <inheritdoc/>
    public abstract ITransport Split(int color, int key);

    /// <inheritdoc/>
    public abstract IPeerMemory? SharePeerMemory(long bytesPerRank);

    /// <inheritdoc/>
    public abstract void Dispose();

    /// <summary>Throws when the library cannot read and write memory of the region's place.</summary>
    protected abstract void RequireReachable(Region region);

    /// <summary>Begins an exchange. An empty region is no message.</summary>
    protected abstract void Begin(Region outgoing, int to, Region incoming, int from);

    /// <summary>Waits for the exchange that <see cref="Begin"/> began.</summary>
    protected abstract void End();

    /// <summary>Combines f32 elements over all ranks.</summary>
    protected abstract void Combine(Region region, ReduceOperation operation);

    /// <summary>Folds states over all ranks.</summary>
    /// <exception cref="NotSupportedException"><see cref="CanReduceStates"/> is false.</exception>
    protected abstract void CombineStates(PartialAttention state);

    /// <summary>Gathers a region of each rank; <paramref name="all"/> is as long as they are together.</summary>
    protected abstract void Gather(Region mine, Region all);

    /// <summary>Gives every rank its part; the parts make up the regions, and the own part is equally long on both sides.</summary>
    protected abstract void Scatter(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes);

    /// <summary>Copies the region of <paramref name="root"/> to every rank.</summary>
    protected abstract void Copy(Region region, int root);

    /// <summary>Waits for every rank.</summary>
    protected abstract void Meet();

    /// <summary>Counts a region that is sent to one rank, if it is a message.</summary>
    protected void CountMessage(Region outgoing)
    {
        if (outgoing.Bytes > 0)
        {
            Traffic.CountMessage(outgoing.Bytes);
        }
    }

    /// <summary>The bytes of parts together.</summary>
    protected static long Sum(ReadOnlySpan<long> bytes)
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
}
