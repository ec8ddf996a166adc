using System;
using System.Linq;
using TreeAttention.Communication.Nodes;
using TreeAttention.Communication.Transports;
using TreeAttention.Distributed.Faults;
using TreeAttention.Distributed.Numerics;
using TreeAttention.Distributed.Ports;
using TreeAttention.Distributed.Reductions;

namespace TreeAttention.Communication.InProcess;

/// <summary>Ranks that are threads of one process: regions are copied and combined where they lie.</summary>
/// <remarks>
/// A message is copied once, by its receiver; a send returns when that is done. Combining goes by elements: each rank
/// combines its share of them over all ranks in one fixed order and writes the result to all, so every rank gets the same
/// bits on every run. An empty region is no message. Nothing is allocated per operation. When a rank ends the group, or
/// leaves it while others wait for it, they throw <see cref="FaultCode.PeerLost"/>.
/// </remarks>
internal sealed class InProcessTransport : TransportBase
{
    private const long SmallestShare = 64; // elements: less work than the cache lines it would share with a neighbour

    private readonly GroupBoard _group;
    private Region _outgoing;
    private Region _incoming;
    private int _to;
    private int _from;

    internal InProcessTransport(GroupBoard group, int rank, Traffic traffic)
        : base(rank, group.Nodes, traffic)
    {
        _group = group;
    }

    /// <inheritdoc/>
    public override string Name => "in-process";

    /// <inheritdoc/>
    public override bool CanReduceStates => true;

    /// <inheritdoc/>
    public override ITransport Split(int color, int key)
    {
        _group.Splits[Rank] = new GroupBoard.SplitChoice(color, key);
        _group.Meet(Rank);
        int[] members = [.. Enumerable.Range(0, Size).Where(rank => _group.Splits[rank].Color == color).OrderBy(rank => _group.Splits[rank].Key)];
        int founder = members[0];
        if (Rank == founder)
        {
            _group.Groups[founder] = new GroupBoard(
                NodeNumbers.Of(members.Select(rank => Nodes[rank])), _group.Members.Fault, [.. members.Select(rank => _group.Members.Seats[rank])], _group.Limits);
        }

        _group.Meet(Rank);
        var split = new InProcessTransport(_group.Groups[founder], Array.IndexOf(members, Rank), Traffic);
        _group.Meet(Rank);
        return split;
    }

    /// <inheritdoc/>
    public override IPeerMemory? SharePeerMemory(long bytesPerRank)
    {
        if (Nodes.Any(node => node != 0))
        {
            return null;
        }

        if (Rank == 0)
        {
            _group.Peers[0] = new PeerBoard(Size, bytesPerRank);
        }

        _group.Meet(Rank);
        PeerSlots memory = _group.Peers[0].ViewOf(Rank, _group.Members, _group.NewWatch(Rank));
        _group.Meet(Rank);
        return memory;
    }

    /// <summary>Leaves the group: a rank that still waits for this one throws.</summary>
    public override void Dispose() => _group.Members.Leave(Rank);

    /// <inheritdoc/>
    protected override void RequireReachable(Region region)
    {
        if (region.Place == MemoryPlace.Device)
        {
            throw new FaultException(
                FaultCode.Unavailable, $"The in-process transport moves host memory, not a device's. Run with {Setting.DeviceCpu}.");
        }
    }

    /// <inheritdoc/>
    protected override void Begin(Region outgoing, int to, Region incoming, int from)
    {
        (_outgoing, _to, _incoming, _from) = (outgoing, to, incoming, from);
        if (outgoing.Bytes > 0)
        {
            _group.Channel(Rank, to).Post(outgoing, _group.Gates);
        }
    }

    /// <inheritdoc/>
    protected override void End()
    {
        if (_incoming.Bytes > 0)
        {
            _group.Channel(_from, Rank).Take(_incoming, _group.Gates, _group.Members);
        }

        if (_outgoing.Bytes > 0)
        {
            _group.Channel(Rank, _to).AwaitTaken(_group.Gates, _group.Members);
        }

        (_incoming, _outgoing) = (Region.Empty, Region.Empty);
    }

    /// <inheritdoc/>
    protected override void Combine(Region region, ReduceOperation operation)
    {
        ShowEqual(region, "all-reduce");
        long shares = Math.Min(Size, (region.Count + SmallestShare - 1) / SmallestShare);
        if (Rank < shares)
        {
            long first = region.Count * Rank / shares;
            HostRegions.Combine(_group.Shown, first, (region.Count * (Rank + 1) / shares) - first, operation);
        }

        Finish();
    }

    /// <inheritdoc/>
    protected override void CombineStates(PartialAttention state)
    {
        ShowEqual(state.Region, "all-reduce of states");
        int first = (int)((long)state.Rows * Rank / Size);
        int end = (int)((long)state.Rows * (Rank + 1) / Size);
        StateRows.FoldOnAll(_group.Shown, _group.Steps, new StateRows(state.Rows, state.ValueDim, first, end));
        Finish();
    }

    /// <inheritdoc/>
    protected override void Gather(Region mine, Region all)
    {
        ShowEqual(mine, "all-gather");
        for (int rank = 0; rank < Size; rank++)
        {
            HostRegions.Copy(_group.Shown[rank], Part(all, rank * mine.Bytes, mine.Bytes));
        }

        Finish();
    }

    /// <inheritdoc/>
    protected override void Scatter(Region outgoing, ReadOnlySpan<long> outgoingBytes, Region incoming, ReadOnlySpan<long> incomingBytes)
    {
        outgoingBytes.CopyTo(_group.PartBytes.AsSpan(Rank * Size, Size));
        Show(outgoing);
        for (int rank = 0; rank < Size; rank++)
        {
            RequireLength(_group.PartBytes[(rank * Size) + Rank], incomingBytes[rank], "all-to-all");
        }

        _group.Members.Fault.BeginTouch();
        long into = 0;
        for (int rank = 0; rank < Size; rank++)
        {
            ReadOnlySpan<long> parts = _group.PartBytes.AsSpan(rank * Size, Size);
            long from = 0;
            foreach (long bytes in parts[..Rank])
            {
                from += bytes;
            }

            HostRegions.Copy(Part(_group.Shown[rank], from, parts[Rank]), Part(incoming, into, parts[Rank]));
            into += parts[Rank];
        }

        Finish();
    }

    /// <inheritdoc/>
    protected override void Copy(Region region, int root)
    {
        ShowEqual(region, "broadcast");
        if (Rank != root)
        {
            HostRegions.Copy(_group.Shown[root], region);
        }

        Finish();
    }

    /// <inheritdoc/>
    protected override void Meet() => _group.Meet(Rank);

    private static Region Part(Region region, long firstByte, long bytes) =>
        region with { Address = region.Address + (nint)firstByte, Bytes = bytes };

    private void Show(Region region)
    {
        _group.Shown[Rank] = region;
        _group.Meet(Rank);
    }

    // Returns with the right to touch what the others show, until Finish.
    private void ShowEqual(Region region, string operation)
    {
        Show(region);
        for (int rank = 0; rank < Size; rank++)
        {
            RequireLength(_group.Shown[rank].Bytes, region.Bytes, operation);
        }

        _group.Members.Fault.BeginTouch();
    }

    // What this rank had to read and write is done; the regions are their owners' again when all ranks are.
    private void Finish()
    {
        _group.Members.Fault.EndTouch();
        _group.Meet(Rank);
    }

    private void RequireLength(long actual, long expected, string operation)
    {
        if (actual != expected)
        {
            throw _group.Members.Fault.End(new FaultException(
                FaultCode.RanksDisagree,
                $"Rank {Rank} of {Size}: {operation} of {expected:N0} bytes, but another rank takes part with {actual:N0}: all ranks must "
                + "come with the same shapes. Start every rank with the same arguments.")
            {
                Rank = Rank,
            });
        }
    }
}

/// <summary>Some rows of a state: what one rank folds over all ranks in an all-reduce of states.</summary>
/// <param name="Rows">Rows of the whole state.</param>
/// <param name="ValueDim">Elements of an output row.</param>
/// <param name="First">The first of these rows.</param>
/// <param name="End">The row after the last.</param>
internal readonly record struct StateRows(int Rows, int ValueDim, int First, int End)
{
    private const int BlockElements = 4096; // output elements folded at a time over all ranks: they stay in the cache

    /// <summary>Folds these rows of all states in the canonical order and writes the result to all states.</summary>
    public static void FoldOnAll(ReadOnlySpan<Region> states, ReadOnlySpan<FoldStep> steps, StateRows rows)
    {
        int most = Math.Max(1, BlockElements / rows.ValueDim);
        for (int first = rows.First; first < rows.End; first += most)
        {
            StateRows block = rows with { First = first, End = Math.Min(rows.End, first + most) };
            foreach (FoldStep step in steps)
            {
                PartialMerge.Fold(
                    block.Output(states[step.Into]), block.Max(states[step.Into]), block.Sum(states[step.Into]),
                    block.Output(states[step.From]), block.Max(states[step.From]), block.Sum(states[step.From]), rows.ValueDim);
            }

            foreach (Region state in states[1..])
            {
                block.Output(states[0]).CopyTo(block.Output(state));
                block.Max(states[0]).CopyTo(block.Max(state));
                block.Sum(states[0]).CopyTo(block.Sum(state));
            }
        }
    }

    private Span<float> Output(Region state) =>
        HostRegions.Floats(state, (long)First * ValueDim, (End - First) * ValueDim);

    private Span<float> Max(Region state) => HostRegions.Floats(state, ((long)Rows * ValueDim) + First, End - First);

    private Span<float> Sum(Region state) => HostRegions.Floats(state, ((long)Rows * (ValueDim + 1)) + First, End - First);
}
