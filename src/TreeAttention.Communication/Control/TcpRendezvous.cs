using System;
using System.Buffers.Binary;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.Linq;
using System.Net;
using System.Net.Sockets;
using System.Threading;
using TreeAttention.Distributed.Faults;

namespace TreeAttention.Communication.Control;

/// <summary>Where processes meet that no MPI started: rank 0 listens at an address that all were told, and gives a few bytes to each.</summary>
/// <remarks>
/// It is what <see cref="TcpControlPlane.Connect"/> takes in place of a broadcast by MPI. Whoever reaches the port gets the bytes: use it
/// inside a cluster. A visitor says who it is: job, rank, number of ranks. One of another job (two jobs on one port, two steps of
/// an allocation) is sent away to come again, so that the port serves one job after the other. Where no launcher names the job, a working directory
/// and a command line tell jobs apart; a visitor that has others is kept waiting a little and taken when nobody fits better.
/// </remarks>
internal sealed class TcpRendezvous
{
    private const int MostBytes = 1 << 20;
    private const int ReceiveMilliseconds = 5000;
    private const int SocketLevel = 1;  // SOL_SOCKET
    private const int ReuseAddress = 2; // SO_REUSEADDR alone; .NET's option sets SO_REUSEPORT too, by which two jobs would share the port
    private static readonly TimeSpan _strangerPatience = TimeSpan.FromSeconds(3);

    private readonly string _host;
    private readonly int _port;
    private readonly RendezvousVisitor _self;
    private readonly TimeSpan _limit;

    /// <summary>One rank's view.</summary>
    /// <param name="address">Host and port of rank 0: <c>node17:29400</c>, <c>127.0.0.1:29400</c>, <c>[::1]:29400</c>.</param>
    /// <param name="self">This rank.</param>
    /// <param name="limit">How long the ranks may take to come.</param>
    /// <exception cref="FaultException">The address is none (2).</exception>
    public TcpRendezvous(string address, RendezvousVisitor self, TimeSpan limit)
    {
        int colon = address.LastIndexOf(':');
        if (colon <= 0 || !int.TryParse(address[(colon + 1)..], NumberStyles.None, CultureInfo.InvariantCulture, out _port) || _port is 0 or > 65535)
        {
            throw new FaultException(
                FaultCode.CommandLine, $"'{address}' is no address to meet at: give the host of rank 0 and a free port, as in TREEATTN_RENDEZVOUS=node17:29400.")
            { IsAgreed = true };
        }

        (_host, _self, _limit) = (address[..colon].Trim('[', ']'), self, limit);
    }

    /// <summary>The address is one of this machine alone: so all ranks are on it.</summary>
    public bool IsLoopback => _host == "localhost" || (IPAddress.TryParse(_host, out IPAddress? address) && IPAddress.IsLoopback(address));

    /// <summary>Gives every rank the bytes of rank 0. Every rank calls it.</summary>
    /// <param name="bytes">Looked at on rank 0 only.</param>
    /// <exception cref="FaultException">
    /// Not all ranks came in time (201), the port is taken or a rank came twice (69), or ranks disagree on how many they are (78).
    /// </exception>
    public byte[] Broadcast(byte[] bytes)
    {
        if (_self.Rank == 0)
        {
            Give(bytes);
            return bytes;
        }

        return Take();
    }

    private void Give(byte[] bytes)
    {
        var clock = Stopwatch.StartNew();
        using Socket listener = Listen(clock);
        var strangers = new List<(Socket Socket, RendezvousVisitor Visitor, TimeSpan Came)>();
        HashSet<int> missing = [.. Enumerable.Range(1, _self.Size - 1)];
        try
        {
            while (missing.Count > 0)
            {
                if (clock.Elapsed >= _limit)
                {
                    throw NotAllCame(missing);
                }

                if (listener.Poll(TimeSpan.FromMilliseconds(200), SelectMode.SelectRead))
                {
                    Greet(listener.Accept(), bytes, missing, strangers, clock.Elapsed);
                }

                foreach ((Socket socket, RendezvousVisitor visitor, _) in strangers.Where(one => clock.Elapsed - one.Came > _strangerPatience).ToArray())
                {
                    strangers.RemoveAll(one => one.Socket == socket);
                    using (socket)
                    {
                        Serve(socket, visitor, bytes, missing);
                    }
                }
            }
        }
        finally
        {
            // Whoever still waits is of another job: its connection ends, and it comes again.
            strangers.ForEach(one => one.Socket.Dispose());
        }
    }

    private void Greet(Socket socket, byte[] bytes, HashSet<int> missing, List<(Socket, RendezvousVisitor, TimeSpan)> strangers, TimeSpan now)
    {
        socket.ReceiveTimeout = socket.SendTimeout = ReceiveMilliseconds;
        var came = RendezvousVisitor.Read(socket);
        if (came is not null && came.IsOfSameJob(_self) && !came.IsAlike(_self) && came.Rank > 0)
        {
            strangers.Add((socket, came, now));
            return;
        }

        using (socket)
        {
            if (came is not null && came.IsOfSameJob(_self) && came.IsAlike(_self))
            {
                Serve(socket, came, bytes, missing);
            }
        }
    }

    private void Serve(Socket socket, RendezvousVisitor came, byte[] bytes, HashSet<int> missing)
    {
        if (came.Size != _self.Size)
        {
            RendezvousAnswer.OtherSize.Send(socket, _self.Size);
            throw new FaultException(
                FaultCode.RanksDisagree,
                $"Rank {came.Rank} was started as one of {came.Size} ranks, rank 0 as one of {_self.Size}. Give every rank the same TREEATTN_WORLD_SIZE.");
        }

        if (came.Rank == 0 || !missing.Contains(came.Rank))
        {
            RendezvousAnswer.CameTwice.Send(socket, came.Rank);
        }
        else if (RendezvousAnswer.Welcome.Send(socket, bytes.Length, bytes))
        {
            missing.Remove(came.Rank);
        }
    }

    private FaultException NotAllCame(HashSet<int> missing) => new(
        FaultCode.NoProgress,
        $"Rank {string.Join(", ", missing.Order())} of {_self.Size} did not come to {_host}:{_port} within {_limit.TotalSeconds:0.#} s. Start every rank "
        + $"with the same TREEATTN_RENDEZVOUS and TREEATTN_WORLD_SIZE, each with a TREEATTN_RANK of its own, or wait longer by {Setting.JoinTimeout}.");

    // A port that another job meets at is free once its ranks have met; one that this job's own rank 0 has is not to be had.
    private Socket Listen(Stopwatch clock)
    {
        while (true)
        {
            try
            {
                return ListenOnce();
            }
            catch (SocketException error) when (error.SocketErrorCode == SocketError.AddressAlreadyInUse && clock.Elapsed < _limit)
            {
                RefuseTwin();
                Thread.Sleep(100);
            }
            catch (SocketException error)
            {
                throw new FaultException(
                    FaultCode.Unavailable, $"Rank 0 cannot listen at port {_port}: {error.Message}. Choose a free port in TREEATTN_RENDEZVOUS.", error);
            }
        }
    }

    private Socket ListenOnce()
    {
        bool isVersion4 = !Socket.OSSupportsIPv6 || (IsLoopback && !_host.Contains(':', StringComparison.Ordinal));
        IPAddress here = isVersion4
            ? IsLoopback ? IPAddress.Loopback : IPAddress.Any
            : IsLoopback ? IPAddress.IPv6Loopback : IPAddress.IPv6Any;
        var listener = new Socket(here.AddressFamily, SocketType.Stream, ProtocolType.Tcp);
        try
        {
            if (!isVersion4)
            {
                listener.DualMode = true;
            }

            listener.SetRawSocketOption(SocketLevel, ReuseAddress, BitConverter.GetBytes(1));
            listener.Bind(new IPEndPoint(here, _port));
            listener.Listen(_self.Size);
            return listener;
        }
        catch
        {
            listener.Dispose();
            throw;
        }
    }

    private void RefuseTwin()
    {
        (RendezvousAnswer answer, _, _) = Visit();
        if (answer == RendezvousAnswer.CameTwice)
        {
            throw CameTwice(0);
        }
    }

    private byte[] Take()
    {
        for (var clock = Stopwatch.StartNew(); clock.Elapsed < _limit; Thread.Sleep(50))
        {
            (RendezvousAnswer answer, int number, byte[] bytes) = Visit();
            if (answer == RendezvousAnswer.Welcome)
            {
                return bytes;
            }

            if (answer == RendezvousAnswer.CameTwice)
            {
                throw CameTwice(number);
            }

            if (answer == RendezvousAnswer.OtherSize)
            {
                throw new FaultException(
                    FaultCode.RanksDisagree,
                    $"Rank {_self.Rank} was started as one of {_self.Size} ranks, rank 0 as one of {number}. Give every rank the same TREEATTN_WORLD_SIZE.");
            }
        }

        throw new FaultException(
            FaultCode.NoProgress,
            $"Rank {_self.Rank} of {_self.Size} did not find rank 0 at {_host}:{_port} within {_limit.TotalSeconds:0.#} s. Start rank 0 on that host, and look for a firewall.");
    }

    private FaultException CameTwice(int rank) => new(
        FaultCode.Unavailable,
        $"There is a rank {rank} at {_host}:{_port} already, in the same directory with the same arguments. Give each rank a TREEATTN_RANK of its own, and each "
        + "job a port of its own.");

    // Says who this is, and hears the answer; none while rank 0 is not there, or is another job's.
    private (RendezvousAnswer Answer, int Number, byte[] Bytes) Visit()
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        try
        {
            socket.ReceiveTimeout = (int)_limit.TotalMilliseconds;
            socket.Connect(_host, _port);
            _self.Send(socket);
            byte[] head = new byte[2 * sizeof(int)];
            SocketBytes.ReceiveAll(socket, head);
            var answer = (RendezvousAnswer)BinaryPrimitives.ReadInt32LittleEndian(head);
            int number = BinaryPrimitives.ReadInt32LittleEndian(head.AsSpan(sizeof(int)));
            byte[] bytes = answer == RendezvousAnswer.Welcome && number is >= 0 and <= MostBytes ? new byte[number] : [];
            SocketBytes.ReceiveAll(socket, bytes);
            return (answer, number, bytes);
        }
        catch (SocketException)
        {
            return (RendezvousAnswer.None, 0, []);
        }
    }
}

/// <summary>What rank 0 says to a visitor: one of these, a number, and behind a welcome as many bytes.</summary>
internal enum RendezvousAnswer
{
    /// <summary>Nothing: not there, or of another job.</summary>
    None,

    /// <summary>The bytes follow.</summary>
    Welcome,

    /// <summary>This rank has come already.</summary>
    CameTwice,

    /// <summary>The number of ranks is another one.</summary>
    OtherSize,
}

/// <summary>Sends answers.</summary>
internal static class RendezvousAnswers
{
    /// <summary>Sends the answer; false when the visitor has gone.</summary>
    internal static bool Send(this RendezvousAnswer answer, Socket socket, int number, byte[]? bytes = null)
    {
        byte[] message = [.. BitConverter.GetBytes((int)answer), .. BitConverter.GetBytes(number), .. bytes ?? []];
        try
        {
            SocketBytes.SendAll(socket, message);
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }
}

/// <summary>Who comes to a rendezvous.</summary>
/// <param name="Rank">The rank.</param>
/// <param name="Size">Number of ranks that it was told.</param>
/// <param name="Job">What a launcher calls the job; 0 where none does.</param>
/// <param name="Likeness">A fingerprint of working directory and command line, by which jobs without names are told apart.</param>
internal sealed record RendezvousVisitor(int Rank, int Size, long Job, long Likeness)
{
    private const long Magic = 0x32_4E_54_54_41_45_52_54; // "TREATTN2": the words of this version
    private const int Bytes = (3 * sizeof(long)) + (2 * sizeof(int));

    /// <summary>No launcher says that the two are of different jobs.</summary>
    internal bool IsOfSameJob(RendezvousVisitor other) => Job == other.Job;

    /// <summary>The two were started alike.</summary>
    internal bool IsAlike(RendezvousVisitor other) => Likeness == other.Likeness || Job != 0;

    /// <summary>Says it.</summary>
    internal void Send(Socket socket)
    {
        byte[] message = new byte[Bytes];
        BinaryPrimitives.WriteInt64LittleEndian(message, Magic);
        BinaryPrimitives.WriteInt64LittleEndian(message.AsSpan(8), Job);
        BinaryPrimitives.WriteInt64LittleEndian(message.AsSpan(16), Likeness);
        BinaryPrimitives.WriteInt32LittleEndian(message.AsSpan(24), Rank);
        BinaryPrimitives.WriteInt32LittleEndian(message.AsSpan(28), Size);
        SocketBytes.SendAll(socket, message);
    }

    /// <summary>Hears it; null from one that says nothing sensible.</summary>
    internal static RendezvousVisitor? Read(Socket socket)
    {
        byte[] message = new byte[Bytes];
        try
        {
            SocketBytes.ReceiveAll(socket, message);
        }
        catch (SocketException)
        {
            return null;
        }

        return BinaryPrimitives.ReadInt64LittleEndian(message) != Magic ? null : new RendezvousVisitor(
            BinaryPrimitives.ReadInt32LittleEndian(message.AsSpan(24)),
            BinaryPrimitives.ReadInt32LittleEndian(message.AsSpan(28)),
            BinaryPrimitives.ReadInt64LittleEndian(message.AsSpan(8)),
            BinaryPrimitives.ReadInt64LittleEndian(message.AsSpan(16)));
    }
}

/// <summary>Whole messages over a socket.</summary>
internal static class SocketBytes
{
    internal static void SendAll(Socket socket, ReadOnlySpan<byte> message)
    {
        while (message.Length > 0)
        {
            message = message[socket.Send(message, SocketFlags.None)..];
        }
    }

    internal static void ReceiveAll(Socket socket, Span<byte> into)
    {
        while (into.Length > 0)
        {
            int bytes = socket.Receive(into, SocketFlags.None);
            into = bytes > 0 ? into[bytes..] : throw new SocketException((int)SocketError.ConnectionReset);
        }
    }
}
