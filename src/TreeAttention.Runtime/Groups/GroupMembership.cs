using System;
using System.Collections.Generic;
using System.Linq;
using System.Runtime.ExceptionServices;
using System.Threading;
using System.Threading.Tasks;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Runtime.Groups;

/// <summary>Keeps ranks in a group beyond the call that formed it: the launcher runs on a thread of its own until every rank leaves.</summary>
internal sealed class GroupMembership
{
    private readonly Lock _gate = new();
    private readonly List<AttentionGroup> _arrived = [];
    private readonly TaskCompletionSource _formed = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private readonly Thread _host;
    private readonly int _ranks;
    private int _staying;

    private GroupMembership(GroupOptions options, ProcessEnvironment environment, int ranks)
    {
        _ranks = ranks;
        _staying = ranks;
        _host = new Thread(() => Host(options, environment)) { IsBackground = true, Name = "attention group" };
    }

    /// <summary>Forms the group and returns the ranks that live in this process, in order.</summary>
    /// <exception cref="FaultException">The group cannot be formed.</exception>
    internal static AttentionGroup[] Join(GroupOptions options, ProcessEnvironment environment, int ranks)
    {
        options.RequireValid();
        var membership = new GroupMembership(options, environment, ranks);
        membership._host.Start();
        membership._formed.Task.GetAwaiter().GetResult();
        lock (membership._gate)
        {
            AttentionGroup[] groups = [.. membership._arrived];
            Array.Sort(groups, (first, second) => first.Rank.CompareTo(second.Rank));
            return groups;
        }
    }

    /// <summary>A rank leaves; the last one of the process waits until the group is no more.</summary>
    /// <param name="seat">The rank's seat, which the host waits at.</param>
    /// <param name="fault">What only this rank met, which ends the group for the others; null for an orderly end.</param>
    private void Leave(GroupSeat seat, Exception? fault)
    {
        seat.Leave(fault);
        if (Interlocked.Decrement(ref _staying) == 0)
        {
            _host.Join();
        }
    }

    private void Host(GroupOptions options, ProcessEnvironment environment)
    {
        try
        {
            GroupLauncher.Run(options, environment, Seat);
        }
        catch (Exception error)
        {
            // Before the group is formed it is the joiner's; afterwards the ranks have told it themselves.
            _formed.TrySetException(error);
        }
    }

    private FaultCode Seat(AttentionGroup group)
    {
        using var seat = new GroupSeat();
        group.LeaveBy(fault => Leave(seat, fault));
        lock (_gate)
        {
            _arrived.Add(group);
            if (_arrived.Count == _ranks)
            {
                _formed.TrySetResult();
            }
        }

        seat.AwaitLeave();
        return FaultCode.NoProgress; // the code to end with should leaving get stuck: what the caller does after it would not be done
    }
}

/// <summary>Where the thread that formed a rank's part of a group waits until the rank leaves.</summary>
internal sealed class GroupSeat : IDisposable
{
    private readonly ManualResetEventSlim _left = new();
    private Exception? _fault;

    /// <summary>The rank leaves, in order or with a fault.</summary>
    internal void Leave(Exception? fault)
    {
        _fault = fault;
        _left.Set();
    }

    /// <summary>Waits for it; throws the fault, so that the others hear of it.</summary>
    internal void AwaitLeave()
    {
        _left.Wait();
        if (_fault is not null)
        {
            ExceptionDispatchInfo.Throw(_fault);
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _left.Dispose();
}

/// <summary>What one rank made, one thing over the other: disposed of in the opposite order.</summary>
internal sealed class OwnedParts : IDisposable
{
    private readonly Stack<IDisposable> _parts = [];

    /// <summary>Makes a part.</summary>
    internal T Add<T>(Func<T> make)
        where T : class, IDisposable
    {
        T part = make();
        _parts.Push(part);
        return part;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        while (_parts.TryPop(out IDisposable? part))
        {
            part.Dispose();
        }
    }
}

/// <summary>The control plane of a part of a group, over that of the whole: parts agree at the same time, so all parts call alike.</summary>
/// <remarks>
/// What a rank says travels to all ranks of the whole group and is read by those of its part. A part therefore forms and agrees in
/// step with the other parts; steps themselves use the part's own transport alone.
/// </remarks>
internal sealed class PartControlPlane(IControlPlane whole, int[] members) : IControlPlane
{
    /// <inheritdoc/>
    public int Rank { get; } = Array.IndexOf(members, whole.Rank);

    /// <inheritdoc/>
    public int Size => members.Length;

    /// <inheritdoc/>
    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine)
    {
        IReadOnlyList<byte[]> all = whole.AllGather(mine);
        return [.. members.Select(rank => all[rank])];
    }

    /// <inheritdoc/>
    public byte[] AwaitWork(ReadOnlyMemory<byte> mine) =>
        throw new InvalidOperationException("A part of a group gets no work of its own: parts agree in step, so the whole group shares it.");

    /// <inheritdoc/>
    public void Enter(string operation) => whole.Enter(operation);

    /// <inheritdoc/>
    public RankHealth HealthOf(int rank) => whole.HealthOf(members[rank]) with { Rank = rank };

    /// <inheritdoc/>
    public void Leave() => whole.Leave();

    /// <inheritdoc/>
    public void Abort(FaultCode code, string reason) => whole.Abort(code, reason);

    /// <inheritdoc/>
    public void Dispose()
    {
        // The whole group's control plane outlives its parts.
    }
}
