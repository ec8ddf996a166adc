using System;
using System.Collections.Generic;
using System.Linq;
using System.Text;
using TreeAttention.Communication.Nodes;
using TreeAttention.Communication.Transports;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Interop.Nccl;

namespace TreeAttention.Communication.Nccl;

/// <summary>Ranks that are GPUs, connected by NCCL: operations are enqueued on the device's stream, an exchange that was started on a second one.</summary>
/// <remarks>
/// Nothing waits for the device but operations on host regions, which go through device memory, and <see cref="ITransport.Barrier"/>. An
/// all-reduce gives every rank the same bits (each element is combined along one chain or tree and then copied). Whoever
/// waits for the device learns of errors of the library, after which every operation throws. The normal end is
/// <see cref="Leave"/>; disposing alone ends at once, as a fault does.
/// </remarks>
internal sealed unsafe class NcclTransport : TransportBase
{
    private readonly NcclSession _session;
    private readonly NcclCommunicator _communicator;
    private readonly Func<long, IPeerMemory?> _sharePeerMemory;
    private readonly bool _ownsSession;
    private readonly StagingMemory _outgoing;
    private readonly StagingMemory _incoming;
    private readonly StagingMemory _leaving;
    private readonly StagingMemory _arriving;
    private Region _arrived;
    private Region _target;

    private NcclTransport(
        NcclSession session, NcclCommunicator communicator, IEnumerable<int> nodes, Traffic traffic, Func<long, IPeerMemory?> sharePeerMemory,
        bool ownsSession)
        : base(communicator.Rank, NodeNumbers.Of(nodes), traffic)
    {
        (_session, _communicator, _sharePeerMemory, _ownsSession) = (session, communicator, sharePeerMemory, ownsSession);
        IStreamDevice device = session.Device;
        _outgoing = StagingMemory.On(device);
        _incoming = StagingMemory.On(device);
        _leaving = StagingMemory.On(device);
        _arriving = StagingMemory.On(device);
    }

    /// <inheritdoc/>
    public override string Name => "nccl";

    /// <inheritdoc/>
    public override bool CanReduceStates => false;

    /// <inheritdoc/>
    public override bool IsStreamOrdered => true;

    /// <inheritdoc/>
    public override bool IsCapturable => _session.MayCapture;

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
    /// <remarks>On the device's own stream, beside an exchange that is under way.</remarks>
    public override void Exchange(Region outgoing, int to, Region incoming, int from)
    {
        CountMessage(outgoing);
        Region sent = Load(outgoing, _outgoing);
        Region received = Room(incoming, _incoming);
        _communicator.Exchange(sent, to, received, from, Device.EnterStream());
        Unload(received, incoming);
    }

    /// <inheritdoc/>
    /// <remarks>The communicator of the part lives as long as this transport: leaving it alone would have to wait for its other ranks.</remarks>
    public override ITransport Split(int color, int key)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(color);
        using var mine = new HostMemory(2 * sizeof(int), ElementType.Int32);
        using var all = new HostMemory(2L * sizeof(int) * Size, ElementType.Int32);
        (mine.Region.AsSpan<int>()[0], mine.Region.AsSpan<int>()[1]) = (color, key);
        Gather(mine.Region, all.Region);
        int[] choices = all.Region.AsSpan<int>().ToArray();
        int[] members = [.. Enumerable.Range(0, Size).Where(rank => choices[2 * rank] == color).OrderBy(rank => choices[(2 * rank) + 1])];
        NcclCommunicator part = _session.Split(_communicator, color, key, Array.IndexOf(members, Rank), members.Length);
        return new NcclTransport(_session, part, members.Select(rank => Nodes[rank]), Traffic, _ => null, ownsSession: false);
    }

    /// <inheritdoc/>
    public override IPeerMemory? SharePeerMemory(long bytesPerRank) => _sharePeerMemory(bytesPerRank);

    /// <summary>Leaves in order, with every rank, when all work is done.</summary>
    public void Leave() => _session.Leave();

    /// <inheritdoc/>
    public override void Dispose()
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

    /// <inheritdoc/>
    protected override void RequireReachable(Region region)
    {
        // What lies in host memory goes through the device's.
    }

    /// <inheritdoc/>
    protected override void Begin(Region outgoing, int to, Region incoming, int from)
    {
        Region sent = Load(outgoing, _leaving);
        (_arrived, _target) = (Room(incoming, _arriving), incoming);
        _communicator.Exchange(sent, to, _arrived, from, _session.Side.Fork());
    }

    /// <inheritdoc/>
    /// <remarks>The host waits only where the incoming region is its own.</remarks>
    protected override void End()
    {
        _session.ThrowIfEnded();
        _session.Side.Join();
        Unload(_arrived, _target);
    }

    /// <inheritdoc/>
    protected override void Combine(Region region, ReduceOperation operation)
    {
        Region combined = Load(region, _outgoing);
        ncclRedOp_t reduction = operation == ReduceOperation.Sum ? ncclRedOp_t.ncclSum : ncclRedOp_t.ncclMax;
        _communicator.AllReduce(combined.Address, combined.Count, reduction, Device.EnterStream());
        Unload(combined, region);
    }

    /// <inheritdoc/>
    protected override void CombineStates(PartialAttention state) =>
        throw new NotSupportedException("NCCL has no all-reduce with an operator of the caller's own.");

    /// <inheritdoc/>
    protected override void Gather(Region mine, Region all)
    {
        Region sent = Load(mine, _outgoing);
        Region received = Room(all, _incoming);
        _communicator.AllGather(sent.Address, received.Address, sent.Bytes, Device.EnterStream());
        Unload(received, all);
    }

    /// <inheritdoc/>
    protected override void Scatter(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
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
    protected override void Copy(Region region, int root)
    {
        Region copied = Rank == root ? Load(region, _outgoing) : Room(region, _outgoing);
        _communicator.Broadcast(copied.Address, copied.Bytes, root, Device.EnterStream());
        if (Rank != root)
        {
            Unload(copied, region);
        }
    }

    /// <inheritdoc/>
    protected override void Meet()
    {
        Region one = _outgoing.Take(new Region(0, sizeof(float), ElementType.Float32, MemoryPlace.Device));
        _communicator.AllReduce(one.Address, 1, ncclRedOp_t.ncclMax, Device.EnterStream());
        Device.Synchronize();
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
}
