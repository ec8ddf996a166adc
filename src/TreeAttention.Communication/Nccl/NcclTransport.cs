using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using TreeAttention.Communication.Mpi;
using TreeAttention.Communication.Staging;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Nccl;

namespace TreeAttention.Communication.Nccl;

/// <summary>Ranks that are GPUs, connected by NCCL: operations are enqueued on the device's stream, an exchange that was started on a second one.</summary>
/// <remarks>
/// Nothing waits for the device but operations on host regions, which go through device memory, and <see cref="Barrier"/>. An
/// all-reduce gives every rank the same bits (each element is combined along one chain or tree and then copied). Whoever
/// waits for the device learns of errors of the library, after which every operation throws. The normal end is
/// <see cref="Leave"/>; disposing alone ends at once, as a fault does.
/// </remarks>
public sealed unsafe class NcclTransport : ITransport
{
    private readonly NcclSession _session;
    private readonly NcclCommunicator _communicator;
    private readonly int[] _nodes;
    private readonly Func<long, IPeerMemory?> _sharePeerMemory;
    private readonly bool _ownsSession;
    private readonly StagingMemory _outgoing;
    private readonly StagingMemory _incoming;
    private readonly StagingMemory _leaving;
    private readonly StagingMemory _arriving;
    private Region _arrived;
    private Region _target;
    private bool _underWay;

    private NcclTransport(
        NcclSession session, NcclCommunicator communicator, IEnumerable<int> nodes, Traffic traffic, Func<long, IPeerMemory?> sharePeerMemory,
        bool ownsSession)
    {
        (_session, _communicator, _sharePeerMemory, _ownsSession) = (session, communicator, sharePeerMemory, ownsSession);
        _nodes = MpiNodes.Number(nodes);
        Traffic = traffic;
        IStreamDevice device = session.Device;
        _outgoing = StagingMemory.On(device);
        _incoming = StagingMemory.On(device);
        _leaving = StagingMemory.On(device);
        _arriving = StagingMemory.On(device);
    }

    /// <inheritdoc/>
    public string Name => "nccl";

    /// <inheritdoc/>
    public int Rank => _communicator.Rank;

    /// <inheritdoc/>
    public int Size => _communicator.Size;

    /// <inheritdoc/>
    public IReadOnlyList<int> Nodes => _nodes;

    /// <inheritdoc/>
    public Traffic Traffic { get; }

    /// <inheritdoc/>
    public bool CanReduceStates => false;

    /// <inheritdoc/>
    public bool IsStreamOrdered => true;

    /// <inheritdoc/>
    public bool IsCapturable => _session.MayCapture;

    private IStreamDevice Device => _session.Device;

    /// <summary>Finds the library; a process has one.</summary>
    /// <param name="candidates">File names, best first.</param>
    /// <returns>What it is: <c>NCCL 2.22.3 (libnccl.so.2)</c>.</returns>
    /// <exception cref="FaultException">There is none, or it is too old (69).</exception>
    public static string LoadLibrary(IReadOnlyList<string> candidates)
    {
        string file;
        try
        {
            file = NcclLibrary.Load(candidates);
        }
        catch (DllNotFoundException error)
        {
            throw NcclFaults.NoLibrary(candidates, error);
        }

        int version = NcclLibrary.ReadVersion();
        return version < NcclLibrary.OldestVersion
            ? throw NcclFaults.TooOld(file, version)
            : $"NCCL {NcclLibrary.Describe(version)} ({file})";
    }

    /// <summary>Connects the ranks of a control plane. Every rank calls it, after <see cref="LoadLibrary"/>.</summary>
    /// <exception cref="FaultException">Two ranks share a GPU (69, on every rank), or NCCL failed (203).</exception>
    public static NcclTransport Connect(NcclSetUp setUp)
    {
        IControlPlane control = setUp.Control;
        string machine = setUp.HostId ?? $"node {setUp.Nodes[control.Rank]}";
        string[] places = [.. control.AllGather(Encoding.UTF8.GetBytes($"{machine}, {setUp.Device.BusAddress}")).Select(Encoding.UTF8.GetString)];
        if (!setUp.MayShareGpus && NcclFaults.SharedGpu(places) is { } refusal)
        {
            throw refusal;
        }

        NcclSession? session = null;
        try
        {
            ncclUniqueId id = AgreeOnId(control);
            session = new NcclSession(setUp.Device, setUp.IsAloneInProcess, setUp.LookForFault);
            control.Enter("connecting by NCCL");
            NcclCommunicator communicator = session.Connect(id, control.Rank, control.Size);
            control.Leave();
            NcclTransport transport = Over(session, communicator, setUp);
            session = null;
            return transport;
        }
        finally
        {
            session?.Dispose();
        }
    }

    /// <inheritdoc/>
    public void Send(Region region, int to) => Exchange(region, to, Region.Empty, to);

    /// <inheritdoc/>
    public void Receive(Region region, int from) => Exchange(Region.Empty, from, region, from);

    /// <inheritdoc/>
    public void Exchange(Region outgoing, int to, Region incoming, int from)
    {
        CountMessage(outgoing);
        Region sent = Load(outgoing, _outgoing);
        Region received = Room(incoming, _incoming);
        _communicator.Exchange(sent, to, received, from, Device.EnterStream());
        Unload(received, incoming);
    }

    /// <inheritdoc/>
    public void StartExchange(Region outgoing, int to, Region incoming, int from)
    {
        if (_underWay)
        {
            throw new InvalidOperationException("An exchange is under way: complete it before the next one.");
        }

        _underWay = true;
        CountMessage(outgoing);
        Region sent = Load(outgoing, _leaving);
        (_arrived, _target) = (Room(incoming, _arriving), incoming);
        _communicator.Exchange(sent, to, _arrived, from, _session.Side.Fork());
    }

    /// <inheritdoc/>
    /// <remarks>The host waits only where the incoming region is its own.</remarks>
    public void Complete()
    {
        if (_underWay)
        {
            _underWay = false;
            _session.ThrowIfEnded();
            _session.Side.Join();
            Unload(_arrived, _target);
        }
    }

    /// <inheritdoc/>
    public void AllReduce(Region region, ReduceOperation operation)
    {
        if (region.Type != ElementType.Float32)
        {
            throw new ArgumentException($"An all-reduce combines f32 elements, not {region.Type.ShortName()}.", nameof(region));
        }

        Traffic.CountCollective(region.Bytes);
        Region combined = Load(region, _outgoing);
        ncclRedOp_t reduction = operation == ReduceOperation.Sum ? ncclRedOp_t.ncclSum : ncclRedOp_t.ncclMax;
        _communicator.AllReduce(combined.Address, combined.Count, reduction, Device.EnterStream());
        Unload(combined, region);
    }

    /// <inheritdoc/>
    public void AllReduceStates(PartialAttention state) =>
        throw new NotSupportedException("NCCL has no all-reduce with an operator of the caller's own.");

    /// <inheritdoc/>
    public void AllGather(Region mine, Region all)
    {
        if (all.Bytes != mine.Bytes * Size)
        {
            throw new ArgumentException($"{Size} parts of {mine.Bytes:N0} bytes do not make {all.Bytes:N0} bytes.", nameof(all));
        }

        Traffic.CountCollective(mine.Bytes);
        Gather(mine, all);
    }

    /// <inheritdoc/>
    public void AllToAll(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        RequireParts(outgoing, outgoingBytes, nameof(outgoingBytes));
        RequireParts(incoming, incomingBytes, nameof(incomingBytes));
        if (outgoingBytes[Rank] != incomingBytes[Rank])
        {
            throw new ArgumentException("A rank sends itself as many bytes as it receives from itself.", nameof(incomingBytes));
        }

        Traffic.CountCollective(outgoing.Bytes - outgoingBytes[Rank]);
        Region sent = Load(outgoing, _outgoing);
        Region received = Room(incoming, _incoming);
        nint stream = Device.EnterStream();
        nint from = sent.Address;
        nint into = received.Address;
        _communicator.OpenGroup();
        for (int rank = 0; rank < Size; rank++)
        {
            _communicator.Send(from, outgoingBytes[rank], rank, stream);
            _communicator.Receive(into, incomingBytes[rank], rank, stream);
            from += (nint)outgoingBytes[rank];
            into += (nint)incomingBytes[rank];
        }

        _communicator.CloseGroup("all-to-all", outgoing.Bytes);
        Unload(received, incoming);
    }

    /// <inheritdoc/>
    public void Broadcast(Region region, int root)
    {
        Traffic.CountCollective(Rank == root ? region.Bytes : 0);
        Region copied = Rank == root ? Load(region, _outgoing) : Room(region, _outgoing);
        _communicator.Broadcast(copied.Address, copied.Bytes, root, Device.EnterStream());
        if (Rank != root)
        {
            Unload(copied, region);
        }
    }

    /// <inheritdoc/>
    public void Barrier()
    {
        Traffic.CountCollective(0);
        Region one = _outgoing.Take(new Region(0, sizeof(float), ElementType.Float32, MemoryPlace.Device));
        _communicator.AllReduce(one.Address, 1, ncclRedOp_t.ncclMax, Device.EnterStream());
        Device.Synchronize();
    }

    /// <inheritdoc/>
    /// <remarks>The communicator of the part lives as long as this transport: leaving it alone would have to wait for its other ranks.</remarks>
    public ITransport Split(int color, int key)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(color);
        using var mine = new HostMemory(2 * sizeof(int), ElementType.Int32);
        using var all = new HostMemory(2L * sizeof(int) * Size, ElementType.Int32);
        (mine.Region.AsSpan<int>()[0], mine.Region.AsSpan<int>()[1]) = (color, key);
        Gather(mine.Region, all.Region);
        int[] choices = all.Region.AsSpan<int>().ToArray();
        int[] members = [.. Enumerable.Range(0, Size).Where(rank => choices[2 * rank] == color).OrderBy(rank => choices[(2 * rank) + 1])];
        NcclCommunicator part = _session.Split(_communicator, color, key, Array.IndexOf(members, Rank), members.Length);
        return new NcclTransport(_session, part, members.Select(rank => _nodes[rank]), Traffic, _ => null, ownsSession: false);
    }

    /// <inheritdoc/>
    public IPeerMemory? SharePeerMemory(long bytesPerRank) => _sharePeerMemory(bytesPerRank);

    /// <summary>Leaves in order, with every rank, when all work is done.</summary>
    public void Leave() => _session.Leave();

    /// <inheritdoc/>
    public void Dispose()
    {
        if (_ownsSession)
        {
            _session.Dispose();
        }

        _outgoing.Dispose();
        _incoming.Dispose();
        _leaving.Dispose();
        _arriving.Dispose();
    }

    /// <summary>A transport over a communicator that is connected; the session is its own from now on.</summary>
    internal static NcclTransport Over(NcclSession session, NcclCommunicator communicator, NcclSetUp setUp)
    {
        session.Begin();
        return new NcclTransport(session, communicator, setUp.Nodes, setUp.Traffic, setUp.SharePeerMemory, ownsSession: true);
    }

    private static ncclUniqueId AgreeOnId(IControlPlane control)
    {
        ncclUniqueId id;
        var bytes = new Span<byte>(&id, sizeof(ncclUniqueId));
        ncclResult_t result = control.Rank == 0 ? NcclNative.ncclGetUniqueId(&id) : ncclResult_t.ncclSuccess;
        control.AllGather(control.Rank == 0 ? bytes.ToArray() : default)[0].CopyTo(bytes);
        return result == ncclResult_t.ncclSuccess
            ? id
            : throw new FaultException(
                FaultCode.CommunicationFault, $"NCCL gave no id for the communicator: {NcclLibrary.Describe(result, 0)}. NCCL_DEBUG=INFO tells more.");
    }

    private void Gather(Region mine, Region all)
    {
        Region sent = Load(mine, _outgoing);
        Region received = Room(all, _incoming);
        _communicator.AllGather(sent.Address, received.Address, sent.Bytes, Device.EnterStream());
        Unload(received, all);
    }

    private void CountMessage(Region outgoing)
    {
        if (outgoing.Bytes > 0)
        {
            Traffic.CountMessage(outgoing.Bytes);
        }
    }

    // Device memory with the region's bytes.
    private Region Load(Region region, StagingMemory scratch)
    {
        Region place = Room(region, scratch);
        if (region.Place != MemoryPlace.Device && region.Bytes > 0)
        {
            Device.Copy(region, place);
        }

        return place;
    }

    // Device memory for the region's bytes. Scratch that is still in use is used again in stream order.
    private static Region Room(Region region, StagingMemory scratch) => region.Place == MemoryPlace.Device ? region : scratch.Take(region);

    // Host regions are done when the operation returns: copies to ordinary memory wait by themselves.
    private void Unload(Region place, Region region)
    {
        if (region.Place != MemoryPlace.Device && region.Bytes > 0)
        {
            Device.Copy(place, region);
            if (region.Place == MemoryPlace.Pinned)
            {
                Device.Synchronize();
            }
        }
    }

    private void RequireParts(Region region, ReadOnlySpan<long> bytes, string name)
    {
        long sum = 0;
        foreach (long part in bytes)
        {
            sum += part;
        }

        if (bytes.Length != Size || sum != region.Bytes)
        {
            throw new ArgumentException(
                $"{bytes.Length} parts of {sum:N0} bytes together do not fit {Size} ranks and a region of {region.Bytes:N0} bytes.", name);
        }
    }
}
