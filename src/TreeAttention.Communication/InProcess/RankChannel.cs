using System.Threading;
using TreeAttention.Distributed;

namespace TreeAttention.Communication;

/// <summary>Messages from one rank to another: the sender shows its region, the receiver copies from it. One message at a time.</summary>
internal sealed class RankChannel(int from, int to)
{
    private Region _shown;
    private int _posted;
    private int _taken;

    /// <summary>Shows a region to the receiver; it stays the sender's until <see cref="AwaitTaken"/> returns.</summary>
    public void Post(Region region, RankGate[] gates)
    {
        _shown = region;
        Interlocked.Increment(ref _posted);
        gates[to].Wake();
    }

    /// <summary>Waits until the receiver has copied what was posted.</summary>
    public void AwaitTaken(RankGate[] gates, GroupMembers members) =>
        gates[from].WaitWhileEqual(ref _taken, _posted - 1, members, to);

    /// <summary>Waits for a message and copies it.</summary>
    /// <exception cref="FaultException">The lengths differ (78), or the sender is lost (200).</exception>
    public void Take(Region into, RankGate[] gates, GroupMembers members)
    {
        gates[to].WaitWhileEqual(ref _posted, _taken, members, from);
        if (_shown.Bytes != into.Bytes)
        {
            throw members.Fault.End(new FaultException(
                FaultCode.RanksDisagree,
                $"Rank {from} sent {_shown.Bytes:N0} bytes to rank {to}, which expected {into.Bytes:N0}: both must come from the same "
                + "shapes. Start every rank with the same arguments.")
            {
                Rank = to,
            });
        }

        members.Fault.BeginTouch();
        HostRegions.Copy(_shown, into);
        members.Fault.EndTouch();
        Interlocked.Increment(ref _taken);
        gates[from].Wake();
    }
}
