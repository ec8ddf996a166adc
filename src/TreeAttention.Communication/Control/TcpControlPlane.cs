using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Linq;
using System.Net.Sockets;
using System.Text;
using System.Threading;
using TreeAttention.Distributed.Ports;

namespace TreeAttention.Communication.Control;

/// <summary>The control plane of ranks that are processes: a star of TCP connections to rank 0, and a thread that watches.</summary>
/// <remarks>
/// Every rank sends a heartbeat to rank 0 and gets one from it. Rank 0 judges all (<see cref="StallLimits"/> and the
/// rules of the judge: a rank that waits too long for one that is silent or stands still ends the group with 201); the others
/// judge rank 0's silence. A connection that ends without a goodbye is a lost peer (200), after a second in which whoever knows
/// better may end the group. <see cref="Enter"/> and <see cref="Leave"/> do not nest. Whoever computes for long says so
/// with an operation named <see cref="StallLimits.ComputeOperation"/>.
/// Disposing of it is the last thing before the transport's end: it stops the watch. The fault is handed to the delegate on the finder first; on the others a second later, should they still live.
/// </remarks>
internal sealed class TcpControlPlane : IControlPlane
{
    private const string Agreement = "agreement";
    private const int FarewellMilliseconds = 2000;

    // A gap between two looks of the watching thread that only a stopped or starved process has.
    private const int PauseMilliseconds = 2500;

    private readonly ControlLink[] _links;
    private readonly StallLimits _limits;
    private readonly Action<FaultCode, string> _onFault;
    private readonly OperationClock _clock = new();
    private readonly ControlWatcher _watcher;
    private readonly ControlAgreement _agreement;
    private readonly Lock _agreeing = new();
    private readonly FirstFault _fault = new();
    private readonly Thread? _watch;
    private readonly byte[] _beat = new byte[ControlBeat.MostBytes];
    private readonly byte[] _farewell = [.. "leaves"u8, 0xff]; // no other part of an agreement: it is no text
    private int _agreements;
    private volatile bool _isLeaving;
    private volatile bool _closing;

    private TcpControlPlane(int rank, int size, ControlLink[] links, StallLimits limits, Action<FaultCode, string> onFault)
    {
        Rank = rank;
        Size = size;
        _links = links;
        _limits = limits;
        _onFault = onFault;
        _agreement = new ControlAgreement(size);
        _watcher = new ControlWatcher(rank, links, limits, _clock);
        if (size > 1)
        {
            _watch = new Thread(Watch) { IsBackground = true, Name = "control plane" };
            _watch.Start();
        }
    }

    /// <inheritdoc/>
    public int Rank { get; }

    /// <inheritdoc/>
    public int Size { get; }

    /// <summary>Connects the ranks. Every rank calls it.</summary>
    /// <param name="rank">This rank.</param>
    /// <param name="size">Number of ranks.</param>
    /// <param name="onOneNode">All ranks share a machine: only the loopback address is opened.</param>
    /// <param name="broadcast">Gives every rank the bytes that rank 0 gives it.</param>
    /// <param name="limits">How long ranks may wait for each other.</param>
    /// <param name="traffic">Counts the control bytes.</param>
    /// <param name="onFault">Ends the process on a fault: tells the user, aborts the job. Called on any thread.</param>
    /// <exception cref="FaultException">Not all ranks came in time (201), or rank 0 is gone (200); the message names them.</exception>
    public static TcpControlPlane Connect(
        int rank, int size, bool onOneNode, Func<byte[], byte[]> broadcast, StallLimits limits, Traffic traffic,
        Action<FaultCode, string> onFault)
    {
        ControlLink[] links = size == 1 ? [] : ControlRendezvous.Connect(rank, size, onOneNode, broadcast, limits.Join, traffic);
        return new TcpControlPlane(rank, size, links, limits, onFault);
    }

    /// <inheritdoc/>
    public void Enter(string operation) => _clock.Enter(operation);

    /// <inheritdoc/>
    public void Leave() => _clock.Leave();

    /// <inheritdoc/>
    public RankHealth HealthOf(int rank) => _links.FirstOrDefault(link => link.Rank == rank)?.PulseAt(Environment.TickCount64) is { } pulse
        ? new RankHealth(rank, pulse.Standing + pulse.Silence, pulse.Operation)
        : new RankHealth(rank, null, null);

    /// <inheritdoc/>
    public IReadOnlyList<byte[]> AllGather(ReadOnlyMemory<byte> mine) => Gather(mine, Agreement);

    /// <inheritdoc/>
    public byte[] AwaitWork(ReadOnlyMemory<byte> mine) => Gather(mine, Rank == 0 ? Agreement : IControlPlane.WorkOperation)[0];
    /// <inheritdoc/>
    public bool LeaveTogether()
    {
        if (Size == 1)
        {
            return true;
        }

        _isLeaving = true; // from here on a fault is what the others tell
        try
        {
            return Array.TrueForAll(Agree(_farewell, StallLimits.LeaveOperation, WhyNoFarewell), part => part.AsSpan().SequenceEqual(_farewell));
        }
        catch (FaultException)
        {
            return false;
        }
    }

    /// <inheritdoc/>
    public void Abort(FaultCode code, string reason) => Fail(code, reason, Rank);

    /// <summary>Says goodbye and closes the connections: after that the end of this process is no fault.</summary>
    public void Dispose()
    {
        if (_closing)
        {
            return;
        }

        _closing = true;
        foreach (ControlLink link in _links)
        {
            link.Send(ControlFrame.Goodbye, []);
            link.EndSending();
        }

        if (Thread.CurrentThread != _watch)
        {
            _watch?.Join();
        }

        foreach (ControlLink link in _links)
        {
            link.Dispose();
        }
    }

    private byte[][] Gather(ReadOnlyMemory<byte> mine, string operation)
    {
        if (Size == 1)
        {
            return [mine.ToArray()];
        }

        byte[][] all = Agree(mine, operation, WhyInVain);
        int leaver = Array.FindIndex(all, part => part.AsSpan().SequenceEqual(_farewell));
        if (leaver < 0)
        {
            return all;
        }

        // Whoever leaves by an exception of its own gets to end its process with its own code.
        Thread.Sleep(ControlWatcher.PatienceOf(Rank));
        throw new FaultException(
            FaultCode.PeerLost, $"Rank {leaver} left the group, but rank {Rank} waits for it ({operation}): every rank must make the same calls, and leave "
            + "when all are done.")
        { Rank = leaver };
    }

    private byte[][] Agree(ReadOnlyMemory<byte> mine, string operation, Func<Exception?> inVain)
    {
        lock (_agreeing)
        {
            Enter(operation);
            try
            {
                int number = _agreements++;
                if (Rank == 0)
                {
                    TakePart(number, 0, mine.ToArray());
                }
                else
                {
                    _links[0].Send(ControlFrame.Part, ControlAgreement.Pack(number, mine.Span));
                }

                return _agreement.Await(number, inVain);
            }
            finally
            {
                Leave();
            }
        }
    }

    private FaultException? WhyNoFarewell() => _fault.Fault ?? (_links.Any(link => !link.IsOpen)
        ? new FaultException(FaultCode.PeerLost, "Another rank has left already.")
        : null);

    private FaultException? WhyInVain() =>
        _fault.ToThrow() ?? (_fault.IsPending || _links.FirstOrDefault(link => link.HasLeft) is not ControlLink gone ? null
            : new FaultException(FaultCode.PeerLost, $"Rank {gone.Rank} ({gone.Place}) has left, but the others want to agree with it.") { Rank = gone.Rank });

    // Rank 0 goes on only when the parts are on their way: its goodbye must not overtake them.
    private void TakePart(int number, int rank, byte[] part)
    {
        byte[][]? parts = _agreement.Add(number, rank, part);
        if (parts == null)
        {
            return;
        }

        byte[] packed = ControlAgreement.PackAll(number, parts);
        foreach (ControlLink link in _links)
        {
            link.Send(ControlFrame.Parts, packed);
        }

        _agreement.Complete(number, parts);
    }

    // The one thread that reads: woken by whatever arrives, and at the latest for the next beat.
    private void Watch()
    {
        var readable = new List<Socket>(_links.Length);
        long nextBeat = 0;
        long lastLook = Environment.TickCount64;
        long closeBy = long.MaxValue;
        while (true)
        {
            long now = Environment.TickCount64;
            if (_closing)
            {
                closeBy = Math.Min(closeBy, now + FarewellMilliseconds);
            }

            bool anyOpen = _links.Any(link => link.IsOpen);
            if (now >= closeBy || (!anyOpen && (_closing || (_links.All(link => link.HasLeft) && !_fault.IsPending))))
            {
                return;
            }

            if (now >= nextBeat)
            {
                bool wasPaused = now - lastLook > PauseMilliseconds;
                lastLook = now;
                nextBeat = now + (long)_limits.Beat.TotalMilliseconds;
                SendBeat(now, wasPaused);
                Judge(now);
            }

            WaitForFrames(readable, (int)Math.Clamp(nextBeat - now, 1, 1000));
        }
    }

    private void WaitForFrames(List<Socket> readable, int milliseconds)
    {
        readable.Clear();
        foreach (ControlLink link in _links)
        {
            if (link.IsOpen)
            {
                readable.Add(link.Socket);
            }
        }

        if (readable.Count == 0)
        {
            Thread.Sleep(milliseconds);
            return;
        }

        Socket.Select(readable, null, null, milliseconds * 1000);
        foreach (ControlLink link in _links)
        {
            if (readable.Contains(link.Socket))
            {
                Read(link);
            }
        }
    }

    private void Read(ControlLink link)
    {
        bool open = link.Fill();
        try
        {
            while (link.TryTake(out ControlFrame kind, out ReadOnlySpan<byte> payload))
            {
                Take(link, kind, payload);
            }
        }
        catch (FaultException fault)
        {
            link.LostAt = Environment.TickCount64;
            Fail(fault.Code, fault.Message, link.Rank);
        }

        if (!open && !link.HasLeft)
        {
            link.LostAt = Environment.TickCount64;
        }
    }

    private void Take(ControlLink link, ControlFrame kind, ReadOnlySpan<byte> payload)
    {
        switch (kind)
        {
            case ControlFrame.Beat:
                link.Hear(payload);
                break;
            case ControlFrame.Part:
                TakePart(ControlAgreement.NumberOf(payload), link.Rank, ControlAgreement.PartOf(payload));
                break;
            case ControlFrame.Parts:
                _agreement.Complete(ControlAgreement.NumberOf(payload), ControlAgreement.PartsOf(payload, Size));
                break;
            case ControlFrame.Abort:
                var code = (FaultCode)BinaryPrimitives.ReadInt32LittleEndian(payload);
                Learn(new FaultException(code, Encoding.UTF8.GetString(payload[sizeof(int)..])) { Rank = link.Rank }, link);
                break;
            default:
                link.Send(ControlFrame.Goodbye, []);
                link.EndSending();
                link.HasLeft = true;
                _agreement.Wake();
                break;
        }
    }

    private void SendBeat(long now, bool wasPaused)
    {
        (long count, string? operation, TimeSpan standing) = _clock.Look(now, wasPaused);
        int bytes = ControlBeat.Write(_beat, count, standing, operation);
        foreach (ControlLink link in _links)
        {
            if (wasPaused)
            {
                link.LastHeard = now;
            }

            if (link.IsOpen && !_closing)
            {
                link.Send(ControlFrame.Beat, _beat.AsSpan(0, bytes));
            }
        }
    }

    private void Judge(long now)
    {
        Tell(now);
        if (!_closing && _fault.Fault == null && _watcher.JudgeLeaving(now) is { } early)
        {
            Learn(early, from: null); // told a second later: whoever leaves by an exception keeps its own code
            _agreement.Wake();
            return;
        }

        if (!_closing && _fault.Fault == null && _watcher.Judge(now) is FaultException fault)
        {
            Fail(fault.Code, fault.Message, fault.Rank ?? Rank);
        }
    }

    private void Fail(FaultCode code, string reason, int rank)
    {
        Learn(new FaultException(code, reason) { Rank = rank }, from: null);
        Tell(long.MaxValue);
    }

    private void Tell(long now)
    {
        if (!_isLeaving && _fault.Tell(now, _onFault))
        {
            _agreement.Wake();
        }
    }

    // Passes a fault on, and remembers it; the first one stays. Whoever learns of it from another gives that one time to act.
    private void Learn(FaultException fault, ControlLink? from)
    {
        if (!_fault.Keep(fault, Environment.TickCount64 + ControlWatcher.GraceMilliseconds))
        {
            return;
        }

        if (_isLeaving)
        {
            _agreement.Wake();
        }

        byte[] frame = ControlAgreement.Pack((int)fault.Code, Encoding.UTF8.GetBytes(fault.Message));
        foreach (ControlLink link in _links)
        {
            if (link != from)
            {
                link.Send(ControlFrame.Abort, frame);
            }
        }
    }
}

/// <summary>The first fault that a rank found or learned of; it is told once.</summary>
internal sealed class FirstFault
{
    private FaultException? _fault;
    private long _tellAt = long.MaxValue;
    private int _told;
    private volatile bool _survived;

    /// <summary>The fault; null while there is none.</summary>
    internal FaultException? Fault => Volatile.Read(ref _fault);

    /// <summary>There is a fault that was not told yet.</summary>
    internal bool IsPending => Fault != null && Volatile.Read(ref _told) == 0;

    /// <summary>Keeps the fault if it is the first.</summary>
    /// <param name="fault">What happened.</param>
    /// <param name="tellAt">When to tell it here, should whoever found it not have ended the group by then.</param>
    internal bool Keep(FaultException fault, long tellAt)
    {
        if (Interlocked.CompareExchange(ref _fault, fault, null) != null)
        {
            return false;
        }

        Volatile.Write(ref _tellAt, tellAt);
        return true;
    }

    /// <summary>Tells the fault unless that was done, or its time has not come.</summary>
    /// <returns>It was told, and the process lives on: whoever waits may be told too.</returns>
    internal bool Tell(long now, Action<FaultCode, string> onFault)
    {
        if (Fault is FaultException fault && now >= Volatile.Read(ref _tellAt) && Interlocked.Exchange(ref _told, 1) == 0)
        {
            onFault(fault.Code, fault.Message);
            _survived = true;
        }

        return _survived;
    }

    /// <summary>A new exception for whoever waits in vain; not before the fault was told, so that the user reads it once.</summary>
    internal FaultException? ToThrow() =>
        _survived && Fault is FaultException fault ? new FaultException(fault.Code, fault.Message) { Rank = fault.Rank } : null;
}
